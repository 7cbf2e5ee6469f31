"""The door for models from outside: checked when loaded, mended where ONNX Runtime is more lenient.

ONNX Runtime runs some models that the ONNX checker refuses. Each of these faults is mended in memory and
told:

1. Without a remark: the operator set named 'ai.onnx', the alias of '' (passes/graph/alias.py), and a second
   declaration of an output. A dimension of -1, or of 0 in an input, is free.
2. Nodes out of order; a cycle is refused, with a node on it.
3. An IR version that is missing, or too old for initializers that are not inputs; a graph without a name.
4. The same initializer twice, with the same values.
5. Declared inner types, then declared output shapes, that the operators contradict: dropped.

What is refused after that, but loads in ONNX Runtime, goes on with a warning; everything else is an
InvalidModelError.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import onnx

from passes.core.errors import InvalidModelError
from passes.graph.alias import write_out_alias
from passes.graph.checking import Refusal, full_check, light_copy, refuse_unreadable
from passes.graph.sorting import every_graph, sort_graph

__all__ = ["ModelWarning", "admit"]

_OLDEST_IR = 4


class ModelWarning(UserWarning):
    """A model that ONNX Runtime runs although the ONNX checker refuses it."""


def admit(proto: onnx.ModelProto, name: str) -> None:
    """Check a model that was just read, and mend it in place where ONNX Runtime would run it as it is.

    Warns with a ModelWarning about everything that the checker refuses.

    Raises:
        InvalidModelError: names the file, and the node where there is one.
    """
    refuse_unreadable(proto, name)
    write_out_alias(proto, name)
    _drop_repeated_types(proto)
    told = _free_dimensions(proto)
    found = _refusal(proto)
    while found and (done := _mended(proto, name, found)):
        told.append(done)
        found = _refusal(proto)
    if not found:
        if told:
            _warn(name, told)
        return
    if _runs(proto):
        _warn(name, [*told, f"the ONNX checker refuses it ({_with_node(found)})"])
        return
    raise InvalidModelError(
        f"{name}: the ONNX checker refuses it, and so does ONNX Runtime: {_with_node(found)}; "
        "export the model again"
    )


def _refusal(proto: onnx.ModelProto) -> str:
    """Why the checker refuses the model; empty where it does not."""
    try:
        full_check(proto)
    except Refusal as refusal:
        return str(refusal)
    return ""


def _mended(proto: onnx.ModelProto, name: str, reason: str) -> str:
    """Mend one fault and say what it was; empty where none of them is the reason."""
    for mend in (_sorted_nodes, _completed_header, _repeated_initializers, _dropped_types, _dropped_outputs):
        done = mend(proto, name, reason)
        if done:
            return done
    return ""


def _warn(name: str, told: Sequence[str]) -> None:
    text = f"{name}: {', and '.join(told)}; ONNX Runtime accepts that, so it is used with care"
    warnings.warn(text, ModelWarning, stacklevel=4)


def _with_node(reason: str) -> str:
    """The checker's reason with the node in front that it names at the end."""
    match = re.search(r"\s*==> Context: Bad node spec for node\. Name:\s*(.*?)\s*OpType:\s*(\S+)", reason)
    if match is None:
        return reason
    return f"node '{match[1]}' ({match[2]}): {reason[: match.start()]}"


def _runs(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime loads the model, weights aside."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        content = light_copy(proto).SerializeToString()
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no class in common
        if not isinstance(error, RuntimeError | UnicodeDecodeError) and not type(error).__module__.startswith(
            "onnxruntime"
        ):
            raise
        return False
    return True


def _free_dimensions(proto: onnx.ModelProto) -> list[str]:
    """Leave open what is declared as -1, as ONNX Runtime does, and what inputs declare as 0."""
    told = []
    for graph in every_graph(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")
    constants = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        shape = value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ()
        empty = [dim for dim in shape if dim.HasField("dim_value") and dim.dim_value == 0]
        if empty and value.name not in constants:
            told.append(f"its input '{value.name}' declares a dimension of 0, which is taken as a free one")
            for dim in empty:
                dim.ClearField("dim_value")
    return told


def _drop_repeated_types(proto: onnx.ModelProto) -> None:
    """Take from value_info what inputs and outputs declare already, and fill in types that outputs lack.

    The declaration of an output is what counts; a second one without a shape made readers forget the first.
    """
    graph = proto.graph
    declared = {value.name for value in (*graph.input, *graph.output)}
    for at in reversed(range(len(graph.value_info))):
        if graph.value_info[at].name in declared:
            del graph.value_info[at]
    untyped = [value for value in graph.output if not value.HasField("type")]
    if not untyped:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(light_copy(proto)).graph.output
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return
    types = {value.name: value.type for value in inferred if value.HasField("type")}
    for value in untyped:
        if value.name in types:
            value.type.CopyFrom(types[value.name])


def _sorted_nodes(proto: onnx.ModelProto, name: str, reason: str) -> str:
    """Fault 2, in the graph and in those nested in it."""
    if "topologically sorted" not in reason:
        return ""
    moved = sort_graph(proto.graph, name)
    return f"its nodes are not in order (first '{moved}')" if moved else ""


def _completed_header(proto: onnx.ModelProto, _name: str, reason: str) -> str:
    """Fault 3."""
    done = []
    unset = "ir_version set" in reason and proto.HasField("ir_version")  # 0; ONNX Runtime refuses none at all
    if unset or "in initializer but not in graph input" in reason:
        least = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
        old, proto.ir_version = proto.ir_version, max(_OLDEST_IR, least, proto.ir_version)
        done.append(f"its IR version {old} does not allow what it holds")
    if "'name' of 'graph'" in reason:
        proto.graph.name = "graph"
        done.append("its graph has no name")
    return ", and ".join(done)


def _repeated_initializers(proto: onnx.ModelProto, name: str, reason: str) -> str:
    """Fault 4. With other values it is refused, for nothing says which of them counts."""
    if "initializer name is not unique" not in reason:
        return ""
    kept: dict[str, onnx.TensorProto] = {}
    repeated = []
    for at, tensor in enumerate(proto.graph.initializer):
        if kept.setdefault(tensor.name, tensor) is tensor:
            continue
        if tensor != kept[tensor.name]:
            raise InvalidModelError(
                f"{name}: it holds the initializer '{tensor.name}' more than once, with different values; "
                "export the model again"
            )
        repeated.append((at, tensor.name))
    for at, _ in reversed(repeated):
        del proto.graph.initializer[at]
    return f"it holds the initializer '{repeated[0][1]}' more than once" if repeated else ""


def _dropped_types(proto: onnx.ModelProto, _name: str, reason: str) -> str:
    """Fault 5, of inner tensors, in nested graphs too."""
    if "nfer" not in reason and "value_info" not in reason:
        return ""
    graphs = list(every_graph(proto.graph))
    if not any(graph.value_info for graph in graphs):
        return ""
    for graph in graphs:
        del graph.value_info[:]
    return (
        f"the types that it declares of inner tensors are not what its operators give ({_with_node(reason)})"
    )


def _dropped_outputs(proto: onnx.ModelProto, _name: str, reason: str) -> str:
    """Fault 5, of outputs. Their element types stay."""
    if "nfer" not in reason:
        return ""
    shaped = [value for value in proto.graph.output if value.type.tensor_type.HasField("shape")]
    for value in shaped:
        value.type.tensor_type.ClearField("shape")
    return (
        f"the shapes of its outputs are not what its operators give ({_with_node(reason)})" if shaped else ""
    )
