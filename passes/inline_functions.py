"""`inline_functions`: the calls of model-local functions that hold layers become the nodes of their bodies.

Passes see the main graph and what is nested in it; a layer in a function would stay float.

1. A function holds a layer when, at one of its calls at least, a Conv, ConvTranspose, Gemm or MatMul in it
   reads a weight worked out of constants: those of its body, or constants that the call hands over.
2. A function that calls such a function holds its layers too.
3. All calls of such a function are inlined; it stays in the file only while another function calls it.
   Functions without layers, and those of `ai.onnxq`, stay as they are.
4. A function of another opset than the model's is converted first (passes/opset); where that fails, the
   model stays as it is, with a note.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
from onnx import inliner

from passes.core.base import Context, Pass, register
from passes.graph.function_layers import Key, LayerSearch, called, function_key, functions_with_layers
from passes.graph.light import without_values
from passes.graph.model import Model, every_graph
from passes.opset.conversion import ConversionError
from passes.opset.upgrading import align_functions

__all__ = ["InlineFunctions"]

_REFUSALS = (
    ConversionError,
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


@register
@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Inline the model-local functions that hold layers, so that these can be quantized."""

    name: ClassVar[str] = "inline_functions"
    keeps_values: ClassVar[bool] = True
    keeps_function: ClassVar[bool] = True

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        names = functions_with_layers(model.proto)
        if not names:
            return model, False
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        try:
            light = without_values(model.proto)
            result = _inlined(light.proto)
            light.restore(result)
        except _REFUSALS as error:
            reason = " ".join(str(error).split())[:200]
            context.note(
                "skipped",
                "",
                f"layers in {listed} cannot be reached, for these functions cannot be inlined ({reason})",
            )
            return model, False
        context.note("info", "", f"functions that hold layers were inlined: {listed}")
        return model.with_proto(result), True


def _inlined(source: onnx.ModelProto) -> onnx.ModelProto:
    proto, holding = onnx.ModelProto(), LayerSearch(source).holding
    proto.CopyFrom(source)
    del proto.functions[:]
    proto.functions.extend(holding.values())
    align_functions(proto)
    result = inliner.inline_local_functions(proto)
    del result.functions[:]
    result.functions.extend(_still_called(result.graph, source))
    imported = {entry.domain for entry in result.opset_import}
    for function in holding.values():
        for entry in function.opset_import:
            if entry.domain not in imported:
                result.opset_import.append(entry)
                imported.add(entry.domain)
    return result


def _still_called(graph: onnx.GraphProto, source: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The source's functions without those that the graph no longer calls, directly or through others."""
    known = {function_key(held): held for held in source.functions}

    def reached(graph: onnx.GraphProto) -> set[Key]:
        found: set[Key] = set()
        waiting = [called(node) for held in every_graph(graph) for node in held.node]
        while waiting:
            key = waiting.pop()
            if key in known and key not in found:
                found.add(key)
                body = onnx.GraphProto(node=known[key].node)
                waiting.extend(called(node) for held in every_graph(body) for node in held.node)
        return found

    gone = reached(source.graph) - reached(graph)
    return [held for key, held in known.items() if key not in gone]
