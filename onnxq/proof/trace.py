"""Where NaN or infinity begins: the first tensor of a model that is not finite on a feed."""

from __future__ import annotations

import numpy as np
import onnx

from onnxq.proof.feeds import Feed
from onnxq.proof.running import numeric
from onnxq.session import plain_session
from passes.core.errors import InvalidModelError
from passes.graph.layers import LAYER_OPS
from passes.graph.model import Model, is_large

__all__ = ["first_nonfinite"]


def _values(model: Model, feed: Feed) -> dict[str, bool]:
    """Tensor -> whether it is finite on the feed, of every tensor that a node of the main graph makes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    listed = {value.name for value in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in listed)
    session = plain_session(model.with_proto(proto))
    found: dict[str, bool] = {}
    for name, value in zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True):
        array = numeric(value)
        if array is not None and array.dtype.kind == "f":
            found[name] = bool(np.isfinite(array).all())
    return found


def first_nonfinite(given: Model, made: Model, feed: Feed) -> str:
    """One clause that names the first tensor of `made` that is NaN or infinite where `given` is finite, the
    node that makes it and the layer in front of it; empty where it cannot be found."""
    if is_large(made.proto) or is_large(given.proto):
        return ""
    try:
        after, before = _values(made, feed), _values(given, feed)
    except (InvalidModelError, RuntimeError):
        return ""
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return ""
    makers = {name: node for node in made.proto.graph.node for name in node.output}
    for node in made.proto.graph.node:
        for name in node.output:
            if after.get(name, True) or not before.get(name, True):
                continue
            layer = _layer_behind(node, makers)
            maker = f"{node.op_type} '{node.name or name}'"
            told = f"the first tensor that is not finite is '{name}', made by {maker}"
            return f"{told}; keep layer '{layer}' in front of it float" if layer else told
    return ""


def _layer_behind(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> str:
    """The nearest layer at or in front of a node: the likeliest cause."""
    waiting, seen = [node], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if current.op_type in LAYER_OPS and current.name:
            return str(current.name)
        waiting.extend(makers[name] for name in current.input if name in makers)
    return ""
