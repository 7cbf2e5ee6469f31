"""One float pass over the data that gathers the statistics of many tensors, in memory of one batch.

Activations are read back as graph outputs, counted and dropped. The batch shrinks until the outputs of
a run fit a budget, so the peak depends on the model and the budget but not on the number of samples.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnxq.calibration.statistics import TensorStatistics
from onnxq.data.dataset import Batch, Dataset
from onnxq.data.inputs import fit_batch, has_batch_axis, input_specs
from onnxq.session import load_session
from passes.core.errors import DataError, GraphError, InvalidModelError, UnsupportedModelError
from passes.graph.external_data import tensor_array
from passes.graph.model import Model, load

__all__ = ["DEFAULT_BATCH", "DEFAULT_BUDGET", "Observer", "collect", "observe"]

DEFAULT_BATCH = 32
DEFAULT_BUDGET = 256 * 2**20
_RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def collect(
    model: onnx.ModelProto | str | PathLike[str],
    tensors: Sequence[str],
    dataset: Dataset,
    *,
    batch_size: int = DEFAULT_BATCH,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    budget: int = DEFAULT_BUDGET,
) -> dict[str, TensorStatistics]:
    """Statistics of every tensor named in `tensors` over the whole dataset, in that order.

    A tensor is a graph input, an initializer or the output of a node of the main graph.
    batch_size: the most samples per run.
    budget: the most bytes of outputs per run; one sample, or the model's fixed batch, always runs.
    threads: those of onnxruntime; None is its default.
    progress: called with the number of samples done.

    Raises GraphError for an unknown tensor, UnsupportedModelError for a model that onnxruntime refuses,
    DataError for NaN, infinity or data that does not fit.
    """
    proto = model if isinstance(model, onnx.ModelProto) else load(model).proto
    statistics = {name: TensorStatistics(name) for name in tensors}
    observe(
        proto,
        statistics,
        dataset,
        batch_size=batch_size,
        threads=threads,
        progress=progress,
        budget=budget,
    )
    return statistics


class Observer(Protocol):
    """What is shown the values of a tensor, batch by batch."""

    def update(self, values: NDArray[Any]) -> None: ...


def observe(
    proto: onnx.ModelProto,
    statistics: Mapping[str, Observer],
    dataset: Dataset,
    *,
    batch_size: int = DEFAULT_BATCH,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    budget: int = DEFAULT_BUDGET,
) -> None:
    """As `collect`, with observers by tensor."""
    outputs, fed = _place(proto, statistics)
    if not outputs and not fed:
        return
    batching = _batching(proto, dataset, batch_size, budget)
    session = _session(proto, outputs, threads) if outputs else None
    done = 0
    while done < len(dataset):
        for batch in dataset.batches(batching.size, done):
            for name in fed:
                statistics[name].update(batch.inputs[name])
            used = _run(session, outputs, batch, statistics) if session else 0
            rows = batch.size if batching.stackable else 1
            done += rows
            if progress is not None:
                progress(done)
            if batching.resize(used // rows):
                break


@dataclass
class _Batching:
    """The next batch size: 1 until the bytes of a sample are known, then what the budget allows."""

    largest: int
    budget: int
    fixed: bool
    stackable: bool
    size: int
    _heaviest: int = 0

    def resize(self, sample_bytes: int) -> bool:
        """Learn what a sample takes; True when the size changes."""
        if self.fixed:
            return False
        self._heaviest = max(self._heaviest, sample_bytes, 1)
        before, self.size = self.size, min(self.largest, max(1, self.budget // self._heaviest))
        return self.size != before


def _batching(proto: onnx.ModelProto, dataset: Dataset, batch_size: int, budget: int) -> _Batching:
    specs = input_specs(proto)
    largest = fit_batch(batch_size, specs)
    fixed = any(fit_batch(size, specs) != size for size in (1, 2))
    if fixed and len(dataset) % largest:
        raise DataError(
            f"{dataset.name}: {len(dataset)} samples do not fill the model's batches of {largest}; "
            f"limit them to a multiple or export with a dynamic batch."
        )
    return _Batching(largest, budget, fixed, has_batch_axis(specs), largest if fixed else 1)


def _place(proto: onnx.ModelProto, statistics: Mapping[str, Observer]) -> tuple[list[str], list[str]]:
    """The tensors to fetch and the fed ones; those of initializers are counted now."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    inputs = {value.name for value in proto.graph.input} - set(constants)
    computed = {name for node in proto.graph.node for name in node.output if name}
    outputs: list[str] = []
    fed: list[str] = []
    for name, stats in statistics.items():
        if name in constants:
            stats.update(tensor_array(constants[name]))
        elif name in inputs:
            fed.append(name)
        elif name in computed:
            outputs.append(name)
        else:
            near = difflib.get_close_matches(name, sorted(computed | inputs | set(constants)), 3)
            raise GraphError(f"tensor '{name}' is not in the model; near names: {', '.join(near) or 'none'}.")
    return outputs, fed


def _session(proto: onnx.ModelProto, outputs: Sequence[str], threads: int | None) -> ort.InferenceSession:
    """A CPU session of the model with `outputs` among its outputs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    present = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in present)
    # An arena keeps the largest block of every size it ever gave out; here all outputs live at once anyway.
    try:
        return load_session(Model(watched), threads=threads, arena=False, fuse=False)
    except InvalidModelError as error:
        raise UnsupportedModelError(f"onnxruntime refuses the model: {error}") from error


def _run(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    batch: Batch,
    statistics: Mapping[str, Observer],
) -> int:
    """Update the statistics from one run and return the bytes of its outputs."""
    try:
        values: list[Any] = session.run(list(outputs), batch.inputs)
    except _RUNTIME_ERRORS as error:
        raise DataError(f"onnxruntime cannot run the model on the data: {_first_line(error)}") from error
    used = 0
    for name, value in _drain(outputs, values):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise GraphError(f"tensor '{name}' holds no numbers; calibrate numeric tensors only.")
        statistics[name].update(value)
        used += value.nbytes
    return used


def _drain(names: Sequence[str], values: list[Any]) -> Iterator[tuple[str, NDArray[Any] | Any]]:
    """The outputs one by one, each let go by the list before the next is taken."""
    values.reverse()
    for name in names:
        yield name, values.pop()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
