"""The rounder that `quantize{rounding=gptq}` asks: layer by layer, inputs of each from the rounded prefix.

For every layer the moments of its input are summed up over the calibration images at picked output
positions (the same in both streams, another pick for each chunk), the layer is rounded on them
(passes/rounding.py), and both streams go on to the next layer. Where an Add follows, the layer makes up for
what the other summand lacks (`Moments.lag`): nothing behind a residual connection would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxq.calibration.patches import MatrixRows, patches_of
from onnxq.data.dataset import Dataset
from onnxq.data.inputs import fit_batch, input_specs
from onnxq.rounding.moments import Accumulator
from onnxq.rounding.replay import Replay
from onnxq.rounding.store import DEFAULT_BUDGET
from onnxq.rounding.views import colour_images, views
from passes.errors import DataError
from passes.model import Model
from passes.rounding import Moments, RoundedLayer, RoundingTask, prediction_error, round_task

__all__ = ["DAMPING", "FIT_BATCH", "DataRounder"]

FIT_BATCH = 8
# One chunk in so many is held out to choose the damping.
_HOLD = 5
_DAMPINGS = (0.1, 0.3, 1.0, 3.0)
# Chosen on calibration images of EfficientNet-Lite0, a part of them held out (benchmarks/RESULTS.md).
DAMPING = 1.0


@dataclass(frozen=True)
class DataRounder:
    """Rounds on `dataset`; lend it to passes as `Context.rounder`.

    damping: of H, relative to the mean of its diagonal; None chooses it layer by layer by the output error on
    chunks that are held out, at twice the cost. positions: picked output positions an image (a quarter of it
    for depthwise convolutions, whose matrices are small). mirror: see every sample mirrored too, where the
    model takes colour images. seed: of the picks. budget: bytes of activations held in memory. progress:
    called with (layers done, layers).
    """

    dataset: Dataset
    damping: float | None = DAMPING
    sweeps: int = 4
    positions: int = 400
    mirror: bool = False
    seed: int = 0
    threads: int | None = None
    budget: int = DEFAULT_BUDGET
    progress: Callable[[int, int], None] | None = None

    def __call__(self, model: Model, tasks: Sequence[RoundingTask]) -> dict[str, RoundedLayer]:
        """Layer name -> rounded weight and bias. Raises DataError for data that cannot be used."""
        if not tasks:
            return {}
        replay = self._replay(model, tasks)
        found: dict[str, RoundedLayer] = {}
        for task, node in replay:
            held = self._round(replay, task, node)
            replay.rounded(held)
            found[task.layer.name] = held
            self._tell(len(found), len(tasks))
        return found

    def alone(
        self, model: Model, tasks: Sequence[Sequence[RoundingTask]]
    ) -> Iterator[tuple[RoundingTask, RoundedLayer]]:
        """Each task rounded as if its layer were the only one in the network that is.

        tasks: for each layer, in graph order, one or more of different schemes. The moments of a layer's
        float input are summed up once for all of its tasks; damping None takes the default.
        Raises DataError for data that cannot be used.
        """
        if not tasks:
            return
        replay = self._replay(model, [several[0] for several in tasks], alone=True)
        damping = DAMPING if self.damping is None else self.damping
        single = replace(self, damping=damping)
        by_output = {several[0].output: several for several in tasks}
        for done, (first, node) in enumerate(replay, start=1):
            fit, _ = single._moments(replay, first, node)
            moments = fit.moments(first.bias is not None)
            for task in by_output[first.output]:
                yield task, round_task(task, moments, damping, self.sweeps)
            self._tell(done, len(tasks))

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    def _replay(self, model: Model, tasks: Sequence[RoundingTask], alone: bool = False) -> Replay:
        specs = input_specs(model.proto)
        batch = fit_batch(FIT_BATCH, specs)
        fixed = any(fit_batch(size, specs) != size for size in (1, 2))
        if fixed and len(self.dataset) % batch:
            raise DataError(
                f"{self.dataset.name}: {len(self.dataset)} samples do not fill the model's batches of "
                f"{batch}; limit them to a multiple or export with a dynamic batch"
            )
        feeds = views(self.dataset, batch, self.mirror and colour_images(specs))
        return Replay(model, tasks, feeds, self.threads, self.budget, alone)

    def _round(self, replay: Replay, task: RoundingTask, node: onnx.NodeProto) -> RoundedLayer:
        fit, held_out = self._moments(replay, task, node)
        centred = task.bias is not None
        damping = self.damping
        if damping is None and held_out.count:
            damping = self._choose(task, fit.moments(centred), held_out.moments(centred))
        if held_out.count:
            fit.merge(held_out)
        chosen = DAMPING if damping is None else damping
        return round_task(task, fit.moments(centred), chosen, self.sweeps)

    def _choose(self, task: RoundingTask, fit: Moments, held_out: Moments) -> float:
        """The damping whose rounding on `fit` has the least output error on `held_out`."""
        errors = {
            damping: prediction_error(task, round_task(task, fit, damping, sweeps=0), held_out)
            for damping in _DAMPINGS
        }
        return min(errors, key=errors.__getitem__)

    def _moments(
        self, replay: Replay, task: RoundingTask, node: onnx.NodeProto
    ) -> tuple[Accumulator, Accumulator]:
        """Sums over the chunks to fit on, and over those held out to choose the damping."""
        index = list(node.input).index(task.layer.weight)
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        patches = patches_of(task.layer, attributes, index)
        fit = Accumulator()
        held_out: Accumulator | None = None
        most = self.positions // 4 if task.layer.depthwise else self.positions
        added = None if replay.alone else replay.added(task)
        lags = itertools.repeat(None) if added is None else replay.inputs(added)
        inputs = replay.inputs(node.input[1 - index])
        for chunk, ((real, rounded), lag) in enumerate(zip(inputs, lags, strict=False)):
            size = patches.positions(real.shape)
            # A matrix product has no images: its rows are those of the whole chunk.
            limit = most * len(real) if isinstance(patches, MatrixRows) else most
            picked = np.arange(size)
            if size > limit:
                generator = np.random.default_rng((self.seed, task.layer.depth, chunk))
                picked = np.sort(generator.choice(size, limit, replace=False))
            own = patches.columns(real, picked)
            other = None if replay.alone else patches.columns(rounded, picked)
            if not all(item is None or np.isfinite(item).all() for item in (own, other)):
                raise DataError(
                    f"layer '{task.layer.name}': its input holds NaN or infinity on the calibration "
                    "data; check the model and the preprocessing"
                )
            lack = None
            if lag is not None and lag[0].size == task.layer.out_channels * size * (
                1 if isinstance(patches, MatrixRows) else len(real)
            ):
                lack = patches.outputs(lag[0] - lag[1], picked)
                lack = lack.reshape(len(own), -1, lack.shape[-1])
            if chunk % _HOLD == _HOLD - 1 and self.damping is None:
                held_out = held_out or Accumulator(fit)
                held_out.update(own, other, lack)
            else:
                fit.update(own, other, lack)
        return fit, held_out or Accumulator(fit)
