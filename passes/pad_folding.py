"""A constant Pad of zeros moved into the pads of what stands behind it. Used by `simplify`.

    Conv(Pad(x, p), W; pads = q) = Conv(x, W; pads = q + p)        x: [N, C, d1, .., dn]

Legality:

1. Pad's mode is constant, its value is 0, its pads are constant and not negative, and zero on N and C.
2. The reader is a Conv whose auto_pad is NOTSET or VALID (SAME_* computes its pads from x).
3. Or it is an AveragePool with the same auto_pad and no ceil_mode, that counts the padding: it has
   count_include_pad = 1, or no pads of its own (then count_include_pad becomes 1, as the zeros were
   counted before). Its pads stay smaller than the kernel. A MaxPool pads with -infinity: never.
4. The output of Pad is no output of the graph. Readers that are not legal keep the Pad; it goes when the
   last reader is gone.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from passes.base import Context
from passes.graph import consumers, is_constant, values
from passes.inference import Types

__all__ = ["fold_pads"]


def _spatial_pads(node: gs.Node, types: Types) -> tuple[list[int], list[int]] | str:
    """Pads before and after the spatial dimensions, or why they cannot be moved (rules 1 and 4)."""
    if node.attrs.get("mode", "constant") != "constant":
        return f"its mode is {node.attrs['mode']}"
    fill = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if fill is not None and not is_constant(fill):
        return "its value is not constant"
    if float(values(fill).reshape(-1)[0]) if fill is not None else node.attrs.get("value", 0.0):
        return "it pads with something else than 0"
    if "pads" in node.attrs:
        pads = [int(pad) for pad in node.attrs["pads"]]
    elif is_constant(node.inputs[1]):
        pads = [int(pad) for pad in values(node.inputs[1]).tolist()]
    else:
        return "its pads are not constant"
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        rank = types.rank(node.inputs[0])
        if rank is None or not is_constant(node.inputs[3]):
            return "its axes are not constant, or the rank of its input is unknown"
        full = [0] * (2 * rank)
        axes = [int(axis) % rank for axis in values(node.inputs[3]).tolist()]
        for position, axis in enumerate(axes):
            full[axis], full[axis + rank] = pads[position], pads[position + len(axes)]
        pads = full
    rank = len(pads) // 2
    before, after = pads[:rank], pads[rank:]
    if min(pads, default=0) < 0:
        return "it crops (negative pads)"
    if rank < 3 or any((*before[:2], *after[:2])):
        return "it pads the batch or the channels"
    return before[2:], after[2:]


def _merge(node: gs.Node, before: list[int], after: list[int]) -> str | None:
    """Add the pads to those of the reader; the reason when it must not be (rules 2 and 3)."""
    size = len(before)
    if node.op not in ("Conv", "AveragePool") or node.domain not in (None, "", "ai.onnx"):
        return f"{node.op} does not pad with zeros" if node.op.endswith("Pool") else None
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        return f"its auto_pad is {auto}"
    own = [0] * (2 * size) if auto == "VALID" else [int(p) for p in node.attrs.get("pads", [0] * (2 * size))]
    total = [pad + extra for pad, extra in zip(own, before + after, strict=True)]
    if node.op == "AveragePool":
        if node.attrs.get("ceil_mode", 0):
            return "ceil_mode counts padding that is not there"
        if any(own) and not node.attrs.get("count_include_pad", 0):
            return "it leaves its own padding out of the average"
        if any(pad >= kernel for pad, kernel in zip(total, [*node.attrs["kernel_shape"]] * 2, strict=True)):
            return "the padding would be as large as the kernel"
        node.attrs["count_include_pad"] = 1
    node.attrs.pop("auto_pad", None)
    node.attrs["pads"] = total
    return ""


def _is_output(graph: gs.Graph, tensor: Any) -> bool:
    return any(item is tensor for item in graph.outputs)


def fold_pads(graph: gs.Graph, types: Types, context: Context) -> bool:
    """Fold the Pads of one graph (not of its subgraphs) into their readers; True if anything changed."""
    changed = False
    own = {id(node) for node in graph.nodes}
    for pad in [node for node in graph.nodes if node.op == "Pad" and node.domain in (None, "", "ai.onnx")]:
        readers = [node for node in consumers(pad.outputs[0]) if id(node) in own]
        readers = [node for node in readers if node.op == "Conv" or node.op.endswith("Pool")]
        if not readers:
            continue
        if _is_output(graph, pad.outputs[0]):
            found: tuple[list[int], list[int]] | str = "it is an output of the graph"
        else:
            found = _spatial_pads(pad, types)
        for reader in readers:
            reason = found if isinstance(found, str) else _merge(reader, *found)
            if reason:
                context.note("refused", pad.name, f"not moved into {reader.name} ({reader.op}): {reason}")
            elif reason == "":
                reader.inputs[0] = pad.inputs[0]
                changed = True
    return changed
