"""A constant Pad of zeros moved into the pads of what stands behind it. Used by `simplify`.

    Conv(Pad(x, p), W; pads = q) = Conv(x, W; pads = q + p)        x: [N, C, d1, .., dn]

Legality:

1. Pad's mode is constant, its value is 0, its pads are constant and not negative, and zero on N and C.
2. The reader is a Conv whose auto_pad is NOTSET or VALID (SAME_* computes its pads from x).
3. Or it is an AveragePool with the same auto_pad and no ceil_mode, that counts the padding: it has
   count_include_pad = 1, or no pads of its own (then count_include_pad becomes 1, as the zeros were
   counted before). Its pads stay smaller than the kernel. A MaxPool pads with -infinity: never.
4. All that read the Pad can take it, and it is no output of the graph. A Pad that stays for one MaxPool
   alone is worse than one that stays for all: ONNX Runtime 1.31 then fuses it as padding with -infinity.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.graph.editing import consumers, is_constant, values
from passes.graph.inference import Types

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


def _merged(node: gs.Node, before: list[int], after: list[int]) -> dict[str, Any] | str:
    """The reader's attributes with the pads added; the reason when they must not be (rules 2 and 3)."""
    size = len(before)
    if node.op not in ("Conv", "AveragePool") or node.domain not in (None, "", "ai.onnx"):
        return (
            f"{node.op} pads with something else than zeros"
            if node.op.endswith("Pool")
            else "it pads nothing"
        )
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        return f"its auto_pad is {auto}"
    own = [0] * (2 * size) if auto == "VALID" else [int(p) for p in node.attrs.get("pads", [0] * (2 * size))]
    total = [pad + extra for pad, extra in zip(own, before + after, strict=True)]
    attrs: dict[str, Any] = {"pads": total}
    if node.op == "AveragePool":
        if node.attrs.get("ceil_mode", 0):
            return "ceil_mode counts padding that is not there"
        if any(own) and not node.attrs.get("count_include_pad", 0):
            return "it leaves its own padding out of the average"
        if any(pad >= kernel for pad, kernel in zip(total, [*node.attrs["kernel_shape"]] * 2, strict=True)):
            return "the padding would be as large as the kernel"
        attrs["count_include_pad"] = 1
    return attrs


def _fold(graph: gs.Graph, pad: gs.Node, readers: list[gs.Node], types: Types) -> str:
    """Fold one Pad into all its readers; the reason when it stays, "" when it went."""
    target = pad.outputs[0]
    if any(item is target for item in graph.outputs):
        return "it is an output of the graph"
    found = _spatial_pads(pad, types)
    if isinstance(found, str):
        return found
    changes = []
    for reader in readers:
        attrs = _merged(reader, *found)
        if isinstance(attrs, str) or any(tensor is target for tensor in reader.inputs[1:]):
            return (
                f"{reader.op} '{reader.name}' reads it: {attrs if isinstance(attrs, str) else 'as a weight'}"
            )
        changes.append(attrs)
    for reader, attrs in zip(readers, changes, strict=True):
        reader.attrs.pop("auto_pad", None)
        reader.attrs.update(attrs)
        reader.inputs[0] = pad.inputs[0]
    return ""


def fold_pads(graph: gs.Graph, types: Types, context: Context) -> bool:
    """Fold the Pads of one graph (not of its subgraphs) into their readers; True if anything changed."""
    changed = False
    own = {id(node) for node in graph.nodes}
    for pad in [node for node in graph.nodes if node.op == "Pad" and node.domain in (None, "", "ai.onnx")]:
        readers = consumers(pad.outputs[0])
        if not any(node.op == "Conv" or node.op.endswith("Pool") for node in readers):
            continue
        nested = any(id(node) not in own for node in readers)
        reason = "a nested graph reads it" if nested else _fold(graph, pad, readers, types)
        if reason:
            context.note("refused", pad.name, f"the Pad stays: {reason}")
        else:
            changed = True
    return changed
