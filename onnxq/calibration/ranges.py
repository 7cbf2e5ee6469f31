"""The range provider that quantizing passes ask: tensor names and bits in, (low, high) out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import onnx

from onnxq.calibration.cache import StatisticsCache, model_digest
from onnxq.calibration.collect import DEFAULT_BATCH, DEFAULT_BUDGET, collect
from onnxq.calibration.observers import Method, parse_method
from onnxq.calibration.output_error import least_output_error
from onnxq.calibration.statistics import TensorStatistics
from onnxq.data.dataset import Dataset
from passes.graph.model import Model

__all__ = ["CalibratedRanges"]

# A search asks for one model's tensors again and again, and goes from model to model.
_MODELS_HELD = 8


class CalibratedRanges:
    """Ranges by one method from one dataset; a model's statistics are gathered once and kept."""

    def __init__(
        self,
        dataset: Dataset,
        method: str | Method = "minmax",
        *,
        cache: StatisticsCache | None = None,
        batch_size: int = DEFAULT_BATCH,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        """`method` is a text such as percentile:99.9 or a Method; the rest is as for `collect`."""
        self.dataset = dataset
        self.method = parse_method(method) if isinstance(method, str) else method
        self._by_output = method == "output"
        self.cache = cache
        self._batch_size, self._threads, self._progress, self._budget = batch_size, threads, progress, budget
        self._held: OrderedDict[str, dict[str, TensorStatistics]] = OrderedDict()

    def __call__(
        self, model: Model | onnx.ModelProto, tensors: Sequence[tuple[str, int]]
    ) -> dict[str, tuple[float, float]]:
        """(low, high) by name for (name, bits) pairs; raises what `collect` and the method raise.

        What `Context.ranges` takes.
        """
        model = model.proto if isinstance(model, Model) else model
        statistics = self.statistics(model, [name for name, _ in tensors])
        found = {name: self.method(statistics[name], bits) for name, bits in tensors}
        if self._by_output:
            found |= least_output_error(
                model,
                {name: (statistics[name], bits) for name, bits in tensors},
                self.dataset,
                batch_size=self._batch_size,
                threads=self._threads,
                budget=self._budget,
            )
        return found

    def statistics(self, model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, TensorStatistics]:
        """The statistics behind the ranges; only tensors not seen before cost a pass."""
        digest = model_digest(model)
        held = self._held.setdefault(digest, {})
        self._held.move_to_end(digest)
        if len(self._held) > _MODELS_HELD:
            self._held.popitem(last=False)
        missing = [name for name in dict.fromkeys(tensors) if name not in held]
        if missing:
            held.update(self._gather(model, digest, missing))
        return {name: held[name] for name in tensors}

    def _gather(
        self, model: onnx.ModelProto, digest: str, tensors: Sequence[str]
    ) -> dict[str, TensorStatistics]:
        key = ""
        if self.cache is not None:
            key = self.cache.key(
                digest, tensors, self.dataset, batch_size=self._batch_size, budget=self._budget
            )
            stored = self.cache.get(key, tensors)
            if stored is not None:
                return stored
        # The names are sorted as the cache sorts them: the order of outputs must not be able to matter.
        found = collect(
            model,
            sorted(tensors),
            self.dataset,
            batch_size=self._batch_size,
            threads=self._threads,
            progress=self._progress,
            budget=self._budget,
        )
        if self.cache is not None:
            self.cache.put(key, found)
        return found
