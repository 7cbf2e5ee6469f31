"""Two streams of activations through one model: the float network, and the network as rounded so far.

Both advance from layer to layer (onnxq/rounding/steps.py) and keep only the tensors that are alive there; no
prefix is ever run twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.data.inputs import Sample
from onnxq.rounding.steps import Step, cut_steps, step_model
from onnxq.rounding.store import Store
from onnxq.session import load_session
from passes.model import Model
from passes.rounding import RoundedLayer, RoundingTask

__all__ = ["Replay", "rounded_node"]

_FLOAT, _ROUNDED = "float:", "rounded:"


class Replay:
    """Iterating over it gives each task with its layer's node when both of its inputs are known.

    The consumer says with `rounded` what became of the layer before it goes on; layers that nobody rounded
    stay float in both streams.
    """

    def __init__(
        self,
        model: Model,
        tasks: Sequence[RoundingTask],
        feeds: Iterable[Sample],
        threads: int | None,
        budget: int,
        alone: bool = False,
    ) -> None:
        """feeds: chunks of the calibration data. budget: bytes of activations that are held in memory; the
        rest lies in temporary files.

        alone: only the float stream, for layers that are looked at one by one.
        """
        self.model, self.tasks, self.threads, self.alone = model, list(tasks), threads, alone
        self.store = Store(budget)
        self.chunks = 0
        for feed in feeds:
            for name, array in feed.items():
                # One array serves both streams until the first of them differs.
                self.store.put(_FLOAT + name, self.chunks, array)
                if not alone:
                    self.store.put(_ROUNDED + name, self.chunks, array)
            self.chunks += 1
        self._steps = cut_steps(model, [task.output for task in self.tasks])
        self._found: RoundedLayer | None = None

    def __iter__(self) -> Iterator[tuple[RoundingTask, onnx.NodeProto]]:
        makers = {node.output[0]: node for node in self.model.proto.graph.node if node.output}
        before: RoundingTask | None = None
        for task, step in zip(self.tasks, self._steps, strict=True):
            self._advance(step, before)
            before, self._found = task, None
            yield task, makers[task.output]

    def rounded(self, found: RoundedLayer) -> None:
        """What the layer that was given last computes with from here on."""
        self._found = found

    def inputs(self, tensor: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """(float, rounded) activations of a tensor that is alive, chunk by chunk; the same one twice where
        there is only the float stream."""
        for chunk in range(self.chunks):
            real = self.store.get(_FLOAT + tensor, chunk)
            yield real, real if self.alone else self.store.get(_ROUNDED + tensor, chunk)

    def added(self, task: RoundingTask) -> str | None:
        """The tensor that the output's only reader, an Add, puts on it; None where it is not alive yet."""
        readers = [node for node in self.model.proto.graph.node if task.output in node.input]
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        others = [name for name in readers[0].input if name != task.output]
        alive = len(others) == 1 and self.store.holds(_FLOAT + others[0])
        return others[0] if alive else None

    def _advance(self, step: Step, before: RoundingTask | None) -> None:
        """Run a step in both streams; `before`: the layer that it begins with."""
        if step.writes:
            self._run(step, step.nodes, (), _FLOAT)
        if step.writes and not self.alone:
            if before is not None and self._found is not None:
                self._run(step, *_replaced(step.nodes, before, self._found), _ROUNDED)
            else:
                self._run(step, step.nodes, (), _ROUNDED)
        for name in step.last_use:
            self.store.drop(_FLOAT + name)
            self.store.drop(_ROUNDED + name)

    def _run(
        self, step: Step, nodes: Sequence[onnx.NodeProto], extra: Sequence[onnx.TensorProto], stream: str
    ) -> None:
        reads = [self._value(stream, name) for name in step.reads]
        session = load_session(
            step_model(self.model, nodes, reads, step.writes, extra), threads=self.threads, arena=False
        )
        for chunk in range(self.chunks):
            feeds = {name: self.store.get(stream + name, chunk) for name in step.reads}
            for name, array in zip(step.writes, session.run(list(step.writes), feeds), strict=True):
                self.store.put(stream + name, chunk, array)

    def _value(self, stream: str, name: str) -> onnx.ValueInfoProto:
        """Type of a stored tensor, with the dimensions that all chunks share."""
        arrays = [self.store.get(stream + name, chunk) for chunk in (0, self.chunks - 1)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        dims: list[int | None] = [None, *arrays[0].shape[1:]] if arrays[0].ndim else []
        return onnx.helper.make_tensor_value_info(name, kind, dims)


def _replaced(
    nodes: Sequence[onnx.NodeProto], task: RoundingTask, found: RoundedLayer
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes with the layer's weight and bias as they were rounded, and these two as initializers."""
    changed: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    for node in nodes:
        if task.output not in node.output:
            changed.append(node)
            continue
        names = [f"{task.output}/rounded_weight", f"{task.output}/rounded_bias"]
        extra.append(numpy_helper.from_array(found.encoded.decoded.astype(task.array.dtype), names[0]))
        if found.bias is not None:
            extra.append(numpy_helper.from_array(found.bias.astype(task.array.dtype), names[1]))
        bias = None if found.bias is None else names[1]
        changed.append(rounded_node(node, task.layer.weight, names[0], bias))
    return changed, extra


def rounded_node(node: onnx.NodeProto, old: str, weight: str, bias: str | None) -> onnx.NodeProto:
    """A copy that reads `weight` instead of `old`, and `bias` where there is one.

    A Gemm's alpha is in a rounded weight, its beta in the bias.
    """
    own = onnx.NodeProto()
    own.CopyFrom(node)
    own.input[list(node.input).index(old)] = weight
    factors = {"alpha"}
    if bias is not None:
        factors.add("beta")
        del own.input[2:]
        own.input.append(bias)
    kept = [attribute for attribute in own.attribute if attribute.name not in factors]
    del own.attribute[:]
    own.attribute.extend(kept)
    return own
