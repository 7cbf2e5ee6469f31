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
from passes.graph.model import Model
from passes.rounding.task import RoundedLayer, RoundingTask

__all__ = ["Replay", "rounded_names", "rounded_node"]

Rounded = Sequence[tuple[RoundingTask, RoundedLayer]]

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
        to_end: bool = False,
    ) -> None:
        """feeds: chunks of the calibration data. budget: bytes of activations that are held in memory; the
        rest lies in temporary files.

        alone: only the float stream, for layers that are looked at one by one. to_end: the last task's step
        goes on to the outputs of the graph, for `ahead`.
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
        self._steps = cut_steps(model, [task.output for task in self.tasks], to_end)
        self._at = -1
        self._found: Rounded = ()

    def __iter__(self) -> Iterator[tuple[RoundingTask, onnx.NodeProto]]:
        makers = {node.output[0]: node for node in self.model.proto.graph.node if node.output}
        for at, task in enumerate(self.tasks):
            self._at = at
            self._advance(self._steps[at])
            self._found = ()
            yield task, makers[task.output]

    def rounded(self, *found: tuple[RoundingTask, RoundedLayer]) -> None:
        """What layers from the one that was given last to the next one compute with from here on."""
        self._found = found

    def ahead(self, *found: tuple[RoundingTask, RoundedLayer]) -> Iterator[list[NDArray[Any]]]:
        """Chunk by chunk, what the part from the given task to the next one writes: of the rounded stream
        with these layers, of the float stream without any."""
        return self._outputs(self._steps[self._at + 1], found, _ROUNDED if found else _FLOAT)

    def part(self, *found: tuple[RoundingTask, RoundedLayer]) -> Model:
        """The part that `ahead` runs, its inputs typed as the stored tensors and named as in the graph."""
        return self._model(self._steps[self._at + 1], found, _ROUNDED)

    def inputs(self, tensor: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """(float, rounded) activations of a tensor that is alive, chunk by chunk; the same one twice where
        there is only the float stream."""
        for chunk in range(self.chunks):
            real = self.store.get(_FLOAT + tensor, chunk)
            yield real, real if self.alone else self.store.get(_ROUNDED + tensor, chunk)

    def read(self, chunk: int) -> list[NDArray[Any]]:
        """What `part` reads of the rounded stream, in the order of its inputs."""
        return [self.store.get(_ROUNDED + name, chunk) for name in self._steps[self._at + 1].reads]

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of what `part` writes."""
        return self._steps[self._at + 1].writes

    def replace(self, tensor: str, chunk: int, array: NDArray[Any]) -> None:
        """Another rounded activation of a tensor that is alive; of no other tensor anything happens."""
        if self.store.holds(_ROUNDED + tensor):
            self.store.put(_ROUNDED + tensor, chunk, array)

    def added(self, task: RoundingTask) -> str | None:
        """The tensor that the output's only reader, an Add, puts on it; None where it is not alive yet."""
        readers = [node for node in self.model.proto.graph.node if task.output in node.input]
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        others = [name for name in readers[0].input if name != task.output]
        alive = len(others) == 1 and self.store.holds(_FLOAT + others[0])
        return others[0] if alive else None

    def _advance(self, step: Step) -> None:
        """Run a step in both streams, the rounded one with the layers that were given back."""
        if step.writes:
            self._run(step, (), _FLOAT)
        if step.writes and not self.alone:
            self._run(step, self._found, _ROUNDED)
        for name in step.last_use:
            self.store.drop(_FLOAT + name)
            self.store.drop(_ROUNDED + name)

    def _run(self, step: Step, found: Rounded, stream: str) -> None:
        for chunk, arrays in enumerate(self._outputs(step, found, stream)):
            for name, array in zip(step.writes, arrays, strict=True):
                self.store.put(stream + name, chunk, array)

    def _outputs(self, step: Step, found: Rounded, stream: str) -> Iterator[list[NDArray[Any]]]:
        """Chunk by chunk, what a step writes."""
        session = load_session(self._model(step, found, stream), threads=self.threads, arena=False)
        for chunk in range(self.chunks):
            feeds = {name: self.store.get(stream + name, chunk) for name in step.reads}
            yield list(session.run(list(step.writes), feeds))

    def _model(self, step: Step, found: Rounded, stream: str) -> Model:
        """A step with the layers in `found`, its inputs typed as the stored tensors."""
        nodes, extra = _replaced(step.nodes, found)
        reads = [self._value(stream, name) for name in step.reads]
        return step_model(self.model, nodes, reads, step.writes, extra)

    def _value(self, stream: str, name: str) -> onnx.ValueInfoProto:
        """Type of a stored tensor, with the dimensions that all chunks share."""
        arrays = [self.store.get(stream + name, chunk) for chunk in (0, self.chunks - 1)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        dims: list[int | None] = [None, *arrays[0].shape[1:]] if arrays[0].ndim else []
        return onnx.helper.make_tensor_value_info(name, kind, dims)


def _replaced(
    nodes: Sequence[onnx.NodeProto], found: Rounded
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes with the layers' weights and biases as they were rounded, and these as initializers."""
    by_output = {task.output: (task, held) for task, held in found}
    changed: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    for node in nodes:
        task, held = by_output.get(node.output[0] if node.output else "", (None, None))
        if task is None or held is None:
            changed.append(node)
            continue
        weight, bias = rounded_names(task)
        extra.append(numpy_helper.from_array(held.encoded.decoded.astype(task.array.dtype), weight))
        if held.bias is not None:
            extra.append(numpy_helper.from_array(held.bias.astype(task.array.dtype), bias))
        changed.append(rounded_node(node, task.layer.weight, weight, None if held.bias is None else bias))
    return changed, extra


def rounded_names(task: RoundingTask) -> tuple[str, str]:
    """Of the initializers that hold a layer's rounded weight and its bias."""
    return f"{task.output}/rounded_weight", f"{task.output}/rounded_bias"


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
