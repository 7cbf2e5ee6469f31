"""The rounder that `quantize{rounding=gptq}` asks: layer by layer, inputs of each from the rounded prefix.

For every layer the moments of its input are summed up over the calibration images at picked output positions
(the same in both streams, another pick for each chunk), the layer is rounded on them (passes/rounding.py), and
both streams go on to the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxq.data.dataset import Dataset
from onnxq.data.inputs import fit_batch, input_specs
from onnxq.rounding.moments import Accumulator
from onnxq.rounding.patches import MatrixRows, patches_of
from onnxq.rounding.replay import Replay
from onnxq.rounding.store import DEFAULT_BUDGET
from passes.errors import DataError
from passes.model import Model
from passes.rounding import RoundedLayer, RoundingTask, round_task

__all__ = ["DataRounder"]

_BATCH = 8


@dataclass(frozen=True)
class DataRounder:
    """Rounds on `dataset`; lend it to passes as `Context.rounder`.

    damping: of H, relative to the mean of its diagonal. positions: picked output positions an image (a
    quarter of it for depthwise convolutions, whose matrices are small). seed: of the picks. budget: bytes of
    activations held in memory. progress: called with (layers done, layers).
    """

    dataset: Dataset
    damping: float = 0.1
    sweeps: int = 4
    positions: int = 400
    seed: int = 0
    threads: int | None = None
    budget: int = DEFAULT_BUDGET
    progress: Callable[[int, int], None] | None = None

    def __call__(
        self, model: Model, tasks: Sequence[RoundingTask], plain: Callable[[str, str], None]
    ) -> dict[str, RoundedLayer]:
        """Layer name -> rounded weight and bias. Raises DataError for data that cannot be used."""
        if not tasks:
            return {}
        batch = fit_batch(_BATCH, input_specs(model.proto))
        replay = Replay(model, tasks, self.dataset, batch, self.threads, self.budget)
        found: dict[str, RoundedLayer] = {}
        for task, node in replay:
            held = self._round(replay, task, node)
            replay.rounded(held)
            found[task.layer.name] = held
            if self.progress is not None:
                self.progress(len(found), len(tasks))
        return found

    def _round(self, replay: Replay, task: RoundingTask, node: onnx.NodeProto) -> RoundedLayer:
        index = list(node.input).index(task.layer.weight)
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        patches = patches_of(task.layer, attributes, index)
        sums = Accumulator()
        most = self.positions // 4 if task.layer.depthwise else self.positions
        for chunk, (real, rounded) in enumerate(replay.inputs(node.input[1 - index])):
            size = patches.positions(real.shape)
            # A matrix product has no images: its rows are those of the whole chunk.
            limit = most * len(real) if isinstance(patches, MatrixRows) else most
            picked = np.arange(size)
            if size > limit:
                generator = np.random.default_rng((self.seed, task.layer.depth, chunk))
                picked = np.sort(generator.choice(size, limit, replace=False))
            columns = patches.columns(real, picked), patches.columns(rounded, picked)
            if not all(np.isfinite(item).all() for item in columns):
                raise DataError(
                    f"layer '{task.layer.name}': its input holds NaN or infinity on the calibration data; check "
                    "the model and the preprocessing"
                )
            sums.update(*columns)
        return round_task(task, sums.moments(task.bias is not None), self.damping, self.sweeps)
