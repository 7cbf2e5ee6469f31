"""Calibration method `output`: of a few ranges, the one that harms the outputs of the readers least.

For a layer y = W x (+ b) and a quantizer q of its input, the error of the output is

    E |W (q(x) - x)|^2 = tr(W C W^T),   C = E (q(x) - x)(q(x) - x)^T,

the error of the input in the norm of the next layer, H = W^T W: a value that is clipped costs as much as the
weights that read it are large, and errors of neighbouring inputs add up or cancel as they do in the network.
Summed over picked output positions of the calibration data, one more float pass behind the one that gathers
the statistics. Ranges that are tried: the full one, shares of it, percentiles, and that of `mse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxq.calibration.collect import observe
from onnxq.calibration.observers import min_max, mse, percentile
from onnxq.calibration.patches import ConvPatches, MatrixRows, patches_of
from onnxq.calibration.statistics import TensorStatistics
from onnxq.data.dataset import Dataset
from passes.graph.boundary import import_graph
from passes.graph.editing import values
from passes.graph.layers import graph_layers, weight_index
from passes.graph.model import Model
from passes.placement.places import activation_input

__all__ = ["candidates", "least_output_error"]

Float = npt.NDArray[np.float32]
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_PERCENTILES = (99.999, 99.99, 99.9, 99.5)
# Output positions of a batch (rows of a matrix product for each sample) that are looked at.
_POSITIONS = 64


@dataclass(frozen=True)
class _Reader:
    """rows: the weight, float32 [groups, M, K]. patches: from its input to columns. depth: for the seed."""

    rows: Float
    patches: ConvPatches | MatrixRows
    depth: int


def candidates(stats: TensorStatistics, bits: int) -> list[tuple[float, float]]:
    """Different (low, high) ranges within the values that were seen, the full one first."""
    low, high = min_max(stats, bits)
    shares = [(max(low * share, low), min(high * share, high)) for share in _SHARES]
    found = [(low, high), *((a, b) for a, b in shares if a <= b)]
    found += [percentile(p)(stats, bits) for p in _PERCENTILES]
    found.append(mse(stats, bits))
    return list(dict.fromkeys(found))


def _quantized(x: Float, low: float, high: float, bits: int) -> Float:
    """What an asymmetric quantizer of that range, widened to hold zero, makes of values."""
    top = (1 << bits) - 1
    low, high = min(low, 0.0), max(high, 0.0)
    step = np.float32((high - low) / top)
    if not step > 0:
        return np.zeros_like(x)
    zero = np.rint(np.float32(-low) / step)
    result: Float = (np.clip(np.rint(x / step) + zero, 0, top) - zero) * step
    return result


class _OutputError:
    """Squared output errors of a tensor's readers, summed up by candidate range."""

    def __init__(self, readers: Sequence[_Reader], ranges: Sequence[tuple[float, float]], bits: int) -> None:
        self.readers, self.ranges, self.bits = readers, ranges, bits
        self.errors = np.zeros(len(ranges))
        self._batches = 0

    def update(self, array: npt.NDArray[Any]) -> None:
        for reader in self.readers:
            size = reader.patches.positions(array.shape)
            limit = _POSITIONS * (len(array) if isinstance(reader.patches, MatrixRows) else 1)
            picked = np.arange(size)
            if size > limit:
                generator = np.random.default_rng((reader.depth, self._batches))
                picked = np.sort(generator.choice(size, limit, replace=False))
            columns = reader.patches.columns(array, picked)
            for index, (low, high) in enumerate(self.ranges):
                wrong = _quantized(columns, low, high, self.bits) - columns
                self.errors[index] += np.square(reader.rows @ wrong, dtype=np.float64).sum()
        self._batches += 1

    def best(self) -> tuple[float, float]:
        """The range of least error; the widest of several."""
        return self.ranges[int(np.argmin(self.errors))]


def _readers(model: onnx.ModelProto, tensors: Mapping[str, Any]) -> dict[str, list[_Reader]]:
    """Conv, Gemm and MatMul layers of the main graph with constant weights, by the tensor that they read."""
    found: dict[str, list[_Reader]] = {}
    graph = import_graph(Model(model))
    for layer, node, home in graph_layers(graph):
        name, index = activation_input(node).name, weight_index(node)
        usable = layer.op in ("Conv", "Gemm") or (layer.op == "MatMul" and len(layer.weight_shape) == 2)
        if home is not graph or name not in tensors or index is None or not usable:
            continue
        moved = np.moveaxis(values(node.inputs[index]), layer.channel_axis, 0).astype(np.float32)
        rows = moved.reshape(layer.groups, moved.shape[0] // layer.groups, -1)
        found.setdefault(name, []).append(_Reader(rows, patches_of(layer, node.attrs, index), layer.depth))
    return found


def least_output_error(
    model: onnx.ModelProto,
    tensors: Mapping[str, tuple[TensorStatistics, int]],
    dataset: Dataset,
    *,
    batch_size: int,
    threads: int | None,
    budget: int,
) -> dict[str, tuple[float, float]]:
    """(low, high) of the tensors that a layer reads, of `tensors`, each with its statistics and bits.

    Raises what `collect` raises.
    """
    observers = {
        name: _OutputError(readers, candidates(*tensors[name]), tensors[name][1])
        for name, readers in _readers(model, tensors).items()
    }
    observe(model, observers, dataset, batch_size=batch_size, threads=threads, budget=budget)
    return {name: observer.best() for name, observer in observers.items()}
