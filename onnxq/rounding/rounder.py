"""The rounder that `quantize{rounding=gptq}` asks: layer by layer, inputs of each from the rounded prefix.

For every layer the moments of its input are summed up over the calibration images at picked output
positions (the same in both streams, another pick for each chunk), the layer is rounded on them
(passes/rounding/task.py), and both streams go on to the next layer. Where an Add follows, the layer makes up
for what the other summand lacks (`Moments.lag`): nothing behind a residual connection would.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxq.calibration.patches import MatrixRows, patches_of
from onnxq.data.dataset import Dataset
from onnxq.data.inputs import fit_batch, input_specs
from onnxq.rounding.moments import Accumulator
from onnxq.rounding.pooled import Pool, pooled
from onnxq.rounding.replay import Replay
from onnxq.rounding.store import DEFAULT_BUDGET
from passes.core.errors import DataError, PolicyError, UserError
from passes.formats import format_of
from passes.graph.model import Model
from passes.rounding.task import Dampings, RoundedLayer, RoundingTask, choose_dampings, round_task

__all__ = ["DAMPING", "FIT_BATCH", "DataRounder", "parse_damping"]

FIT_BATCH = 8
# One chunk in so many is held out to choose the damping.
_HOLD = 5
_TARGETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 1e6)
_METRICS = (0.1, 0.3, 1.0, 3.0)
# Of layers by themselves, on fewer images: up to what is all but plain rounding.
_HOLD_ALONE = 3
_METRICS_ALONE = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Chosen on calibration images of EfficientNet-Lite0, a part of them held out (benchmarks/RESULTS.md).
DAMPING = 1.0


# (replay, the layer that was reached, layers rounded so far by name)
Arrived = Callable[[Replay, RoundingTask, dict[str, RoundedLayer]], None]


def parse_damping(text: str) -> float | None:
    """`auto` (None, chosen layer by layer) or a number above 0. Raises UserError for anything else."""
    if text == "auto":
        return None
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise UserError(f"`damping`: '{text}' is neither auto nor a number above 0")
    return found


@dataclass(frozen=True)
class DataRounder:
    """Rounds on `dataset`; lend it to passes as `Context.rounder`.

    damping: of H and of the target's least squares, relative to the mean of the diagonal; None chooses both
    layer by layer, in a pass of its own in which every fifth chunk is held out of all layers, so that its
    inputs are those of new images; at three times the cost. positions: picked output positions an image (a
    quarter of it for depthwise convolutions, whose matrices are small). seed: of the picks. budget: bytes of
    activations held in memory. progress: called with (layers done, layers), twice the layers where the
    dampings are chosen.
    """

    dataset: Dataset
    damping: float | None = DAMPING
    sweeps: int = 4
    positions: int = 400
    seed: int = 0
    threads: int | None = None
    budget: int = DEFAULT_BUDGET
    progress: Callable[[int, int], None] | None = None

    def __call__(
        self, model: Model, tasks: Sequence[RoundingTask], arrived: Arrived = lambda *_: None
    ) -> dict[str, RoundedLayer]:
        """Layer name -> rounded weight and bias. Raises DataError for data that cannot be used.

        arrived: called when the inputs of a layer are known and before it is rounded, with what was found so
        far, which it may change, as it may the activations that the rounded network has there.
        """
        if not tasks:
            return {}
        if any(task.method == "brecq" for task in tasks):
            raise UserError("rounding brecq learns in torch: lend the passes onnxq.training.BlockRounder")
        damping = self.damping
        if damping is None and all(task.method == "bias" for task in tasks):
            damping = DAMPING  # biases alone have no use for it: no pass to choose it
        pool = pooled(tasks, lambda shared: self.replay(model, shared, alone=True), self._sums)
        if damping is not None:
            same: dict[str, float | Dampings] = dict.fromkeys((task.output for task in tasks), damping)
            return self._rounded(model, tasks, same, pool, arrived)
        chosen = self._chosen(model, tasks, pool)
        return self._rounded(model, tasks, chosen, pool, arrived, done=len(tasks), total=2 * len(tasks))

    def _sums(
        self, replay: Replay, task: RoundingTask, node: onnx.NodeProto, before: Accumulator | None
    ) -> Accumulator:
        """Sums over the inputs of a layer, added to those of the layers before it."""
        return self._moments(replay, task, node, fit=before)[0]

    def _rounded(
        self,
        model: Model,
        tasks: Sequence[RoundingTask],
        dampings: Mapping[str, float | Dampings],
        pool: Pool,
        arrived: Arrived,
        done: int = 0,
        total: int | None = None,
    ) -> dict[str, RoundedLayer]:
        """Each layer rounded on all chunks with its damping, by the name of its output."""
        replay = self.replay(model, tasks)
        found: dict[str, RoundedLayer] = {}
        for task, node in replay:
            arrived(replay, task, found)
            fit, _ = self._moments(replay, task, node)
            of_one = pool.rounded if task in pool else round_task
            held = of_one(task, fit.moments(task.bias is not None), dampings[task.output], self.sweeps)
            replay.rounded((task, held))
            found[task.layer.name] = held
            self._tell(done + len(found), len(tasks) if total is None else total)
        return found

    def _chosen(self, model: Model, tasks: Sequence[RoundingTask], pool: Pool) -> dict[str, float | Dampings]:
        """Output -> its layer's dampings, from a pass in which some chunks are held out of every layer.

        With fewer chunks than one to hold out, and for layers that share their weights, the default.
        """
        replay = self.replay(model, tasks)
        chosen: dict[str, float | Dampings] = {}
        for task, node in replay:
            fit, held_out = self._moments(replay, task, node, hold=_HOLD)
            # Learning is not tried: it would cost most of the time, and settles its codes in the same metric.
            plain = dataclasses.replace(task, method="gptq") if task.method == "adaround" else task
            centred = task.bias is not None
            moments = fit.moments(centred)
            own: float | Dampings = DAMPING
            if held_out.count and task.method != "bias" and task not in pool:
                own = choose_dampings(plain, moments, held_out.moments(centred), _TARGETS, _METRICS)
            chosen[task.output] = own
            # Here a layer only has to err about as it will: a trellis is searched once.
            sweeps = format_of(task.scheme).quick_sweeps(self.sweeps)
            of_one = pool.rounded if task in pool else round_task
            replay.rounded((task, of_one(plain, moments, own, sweeps)))
            self._tell(len(chosen), 2 * len(tasks))
        return chosen

    def alone(
        self, model: Model, tasks: Sequence[Sequence[RoundingTask]]
    ) -> Iterator[tuple[RoundingTask, RoundedLayer]]:
        """Each task rounded as if its layer were the only one in the network that is.

        tasks: for each layer, in graph order, one or more of different schemes. The moments of a layer's
        float input are summed up once for all of its tasks. damping None: that of the metric is chosen for
        each layer, at its coarsest scheme, on one chunk in three; then all chunks are rounded on.
        Raises DataError for data that cannot be used.
        """
        if not tasks:
            return
        replay = self.replay(model, [several[0] for several in tasks], alone=True)
        by_output = {several[0].output: several for several in tasks}
        for done, (first, node) in enumerate(replay, start=1):
            members, centred = by_output[first.output], first.bias is not None
            damping: float | Dampings = DAMPING if self.damping is None else self.damping
            choice = self.damping is None and first.method != "bias"
            fit, held_out = self._moments(replay, first, node, hold=_HOLD_ALONE if choice else 0)
            if held_out.count:
                coarsest = min(members, key=lambda task: task.scheme.bits)
                seen = fit.moments(centred), held_out.moments(centred)
                # Alone, both streams are the same and the target is the weight, whatever its damping.
                damping = choose_dampings(coarsest, *seen, (DAMPING,), _METRICS_ALONE)
                fit.merge(held_out)
            moments = fit.moments(centred)
            for task in members:
                yield task, round_task(task, moments, damping, self.sweeps)
            self._tell(done, len(tasks))

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    def replay(
        self, model: Model, tasks: Sequence[RoundingTask], alone: bool = False, to_end: bool = False
    ) -> Replay:
        """The data set on its way through the model, stopping at the layers of `tasks`."""
        specs = input_specs(model.proto)
        batch = fit_batch(FIT_BATCH, specs)
        fixed = any(fit_batch(size, specs) != size for size in (1, 2))
        if fixed and len(self.dataset) % batch:
            raise DataError(
                f"{self.dataset.name}: {len(self.dataset)} samples do not fill the model's batches of "
                f"{batch}; limit them to a multiple or export with a dynamic batch"
            )
        feeds = (part.inputs for part in self.dataset.batches(batch))
        return Replay(model, tasks, feeds, self.threads, self.budget, alone, to_end)

    def _moments(
        self,
        replay: Replay,
        task: RoundingTask,
        node: onnx.NodeProto,
        hold: int = 0,
        fit: Accumulator | None = None,
    ) -> tuple[Accumulator, Accumulator]:
        """Sums over the chunks to fit on, added to `fit`, and over those held out: one in `hold`, 0: none."""
        index = list(node.input).index(task.layer.weight)
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        patches = patches_of(task.layer, attributes, index)
        fit = fit or Accumulator()
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
            if not np.isfinite(own).all():
                raise DataError(
                    f"layer '{task.layer.name}': its input holds NaN or infinity on the calibration "
                    "data; check the model and the preprocessing"
                )
            if other is not None and not np.isfinite(other).all():
                raise PolicyError(
                    f"layer '{task.layer.name}': its input becomes NaN or infinite once the layers in "
                    "front of it are rounded, and is finite in float; keep the nearest one float, or give "
                    "it more bits"
                )
            lack = None
            if lag is not None and lag[0].size == task.layer.out_channels * size * (
                1 if isinstance(patches, MatrixRows) else len(real)
            ):
                lack = patches.outputs(lag[0] - lag[1], picked)
                lack = lack.reshape(len(own), -1, lack.shape[-1])
            if hold and chunk % hold == hold - 1:
                held_out = held_out or Accumulator(fit)
                held_out.update(own, other, lack)
            else:
                fit.update(own, other, lack)
        return fit, held_out or Accumulator(fit)
