"""The evaluator: the expensive thing, done once per content.

Float outputs are computed once. A candidate runs segment by segment (onnxq/evaluation/segments.py) over
chunks of the data; a chunk starts behind the last segment whose output the previous candidate left in
the cache, so that a search that changes one layer per step pays for the layers behind it alone.
Chunks run on a thread pool, each session single-threaded: no thread waits for another inside an operator,
and results do not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.data import Dataset, InputSpec, fit_batch, input_specs
from onnxq.data.inputs import sample_size
from onnxq.evaluation.scoring import Score, Scorer
from onnxq.evaluation.segments import Segment, choose_anchors, split
from onnxq.metrics.base import Outputs
from onnxq.metrics.registry import headline_of, metrics_beside, open_metric
from onnxq.session import load_session
from passes.core.errors import DataError
from passes.graph.model import Model

__all__ = ["Evaluator", "evaluate_file"]

# Sessions of segments that are kept; a nested search has about two variants of each.
_SESSIONS = 128


# Inputs of about 1.2 MB a run: enough to fill the kernels, little enough that activations stay in the caches,
# and that malloc keeps their memory: without an arena, twice as much cost 1.35 times the CPU (224 x 224).
_CHUNK_NUMBERS = 327_680
_MOST_SAMPLES = 64


def _chunk_for(specs: Sequence[InputSpec]) -> int:
    """Samples per run by the size of one."""
    return min(max(_CHUNK_NUMBERS // max(sample_size(specs), 1), 1), _MOST_SAMPLES)


@dataclass(frozen=True)
class _Chunk:
    index: int
    inputs: dict[str, npt.NDArray[Any]]
    labels: npt.NDArray[np.int64] | None


class Evaluator:
    """Evaluates candidates of one float model on one dataset.

    metric: what they are judged by, see `open_metric`. chunk: samples per run, 0 chooses by their size.
    budget: bytes of cached activations, 0 for no cache. threads: chunks at a time.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        *,
        metric: str | object = "",
        chunk: int = 0,
        threads: int = 1,
        budget: int = 2**30,
    ) -> None:
        specs = input_specs(model.proto)
        self.chunk = fit_batch(chunk or _chunk_for(specs), specs)
        self.dataset, self.threads, self.model = dataset, threads, model
        if len(dataset) == 0:
            raise DataError(f"{dataset.name}: holds no sample to evaluate on")
        wanted = open_metric(metric, labelled=dataset.labelled)
        self.metrics = metrics_beside(wanted, labelled=dataset.labelled, reference=True)
        self.headline = headline_of(self.metrics)
        self._every_output = not all(each.first_output_only for each in self.metrics)
        self._anchors = self._affordable(choose_anchors(model), budget) if budget and len(specs) == 1 else {}
        self._sessions: OrderedDict[str, Any] = OrderedDict()
        self._cache: dict[int, dict[str, npt.NDArray[Any]]] = {}
        self._reference: list[Outputs] | None = None
        self._float_score: Score | None = None

    def _affordable(self, anchors: dict[str, tuple[int, ...]], budget: int) -> dict[str, tuple[int, ...]]:
        """Drop the largest cuts until float activations of the whole dataset fit the budget."""
        kept = dict(anchors)
        while kept and 4 * len(self.dataset) * sum(math.prod(shape) for shape in kept.values()) > budget:
            del kept[max(kept, key=lambda name: math.prod(kept[name]))]
        return kept

    def _chunks(self, start: int, stop: int) -> Iterator[_Chunk]:
        first = start // self.chunk
        for offset, batch in enumerate(self.dataset.batches(self.chunk, start, stop)):
            yield _Chunk(first + offset, batch.inputs, batch.labels)

    def _session(self, segment: Segment) -> Any:
        held = self._sessions.get(segment.digest)
        if held is None:
            held = load_session(Model(segment.proto, self.model.name), threads=1, arena=False)
            self._sessions[segment.digest] = held
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(segment.digest)
        return held

    def _run_chunk(self, chunk: _Chunk, plan: Sequence[tuple[Segment, str, Any]]) -> Outputs:
        """Outputs of one chunk; leaves this candidate's cut activations in the cache."""
        if len(plan) == 1:
            return self._run_whole(chunk, plan[0][0], plan[0][2])
        held = self._cache.get(chunk.index, {})
        begin = 0
        value: npt.NDArray[Any] | None = None
        for position in range(len(plan) - 1, -1, -1):
            if plan[position][1] in held:
                begin, value = position + 1, held[plan[position][1]]
                break
        kept = {key: held[key] for _, key, _ in plan[:begin] if key in held}
        for segment, key, session in plan[begin:]:
            feed = chunk.inputs if value is None else {segment.input: value}
            value = kept[key] = session.run([segment.output], feed)[0]
        self._cache[chunk.index] = kept
        assert value is not None  # a plan has at least one segment
        return {plan[-1][0].output: value}

    def _run_whole(self, chunk: _Chunk, segment: Segment, session: Any) -> Outputs:
        """Outputs of one chunk of a model that is not cut: the first, or all where a metric reads them."""
        names = [segment.output]
        if self._every_output:
            names = [value.name for value in segment.proto.graph.output]
        return dict(zip(names, session.run(names, chunk.inputs), strict=True))

    def _plan(self, model: Model) -> list[tuple[Segment, str, Any]]:
        """Segments with the keys of their outputs (chained digests) and their sessions."""
        if len(model.proto.graph.output) != 1 or not self._anchors:
            segments = split(model, {})
        else:
            segments = split(model, self._anchors)
        plan, chain = [], ""
        for segment in segments:
            chain = hashlib.sha256((chain + segment.digest).encode()).hexdigest()
            plan.append((segment, chain, self._session(segment)))
        return plan

    def outputs(
        self, model: Model, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[_Chunk, Outputs]]:
        """Outputs chunk by chunk in sample order; `start` is a multiple of the chunk size."""
        stop = len(self.dataset) if stop is None else min(stop, len(self.dataset))
        plan = self._plan(model)
        if self.threads <= 1:
            for chunk in self._chunks(start, stop):
                yield chunk, self._run_chunk(chunk, plan)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            pending: list[tuple[_Chunk, Any]] = []
            for chunk in self._chunks(start, stop):
                pending.append((chunk, pool.submit(self._run_chunk, chunk, plan)))
                if len(pending) > self.threads:
                    done, future = pending.pop(0)
                    yield done, future.result()
            for done, future in pending:
                yield done, future.result()

    def reference(self) -> Score:
        """The float model's own score; its outputs are kept for metrics that compare with them."""
        if self._reference is None:
            scorer, kept = Scorer(self.metrics), list[Outputs]()
            for chunk, outputs in self.outputs(self.model):
                scorer.update(outputs, chunk.labels, outputs)
                kept.append(outputs)
            self._reference, self._float_score = kept, scorer.score()
            self._reorder(self._float_score, kept)
        assert self._float_score is not None
        return self._float_score

    def _reorder(self, score: Score, kept: list[Outputs]) -> None:
        """From here on fragile samples come first: those that float gets wrong, then the others by certainty.

        What a candidate may gain or lose against another is then settled by the first of them, so that
        racing can stop early and still be exact. Nothing changes where no metric of the run can race, or
        where samples cannot be told apart in the outputs.
        """
        metric, total = self.headline, len(self.dataset)
        if metric is None or len(score.hits) != total or not _by_sample(kept, total):
            return
        certainty = [metric.certainty(outputs) for outputs in kept]
        keys = [-metric.costs(score.hits)]
        if all(part is not None for part in certainty):
            keys.insert(0, np.concatenate([part for part in certainty if part is not None]))
        order = np.lexsort(keys)
        self.dataset = self.dataset.subset([int(index) for index in order])
        self._cache.clear()
        self._reference = _permuted(kept, order, self.chunk)
        self._float_score = replace(score, hits=score.hits[order])

    def evaluate(
        self,
        model: Model,
        *,
        stages: Sequence[int] = (),
        hopeless: Callable[[Score], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Score:
        """Score of a candidate over all samples, or fewer when `hopeless` says so at one of `stages`.

        Its hits are in the evaluator's own order (see `_reorder`).
        """
        self.reference()
        assert self._reference is not None
        total, scorer, begin = len(self.dataset), Scorer(self.metrics), 0
        ends = [-(-stage // self.chunk) * self.chunk for stage in stages]
        for end in sorted({min(end, total) for end in (*ends, total)}):
            for chunk, outputs in self.outputs(model, begin, end):
                scorer.update(outputs, chunk.labels, self._reference[chunk.index])
                if progress is not None:
                    progress(scorer.samples)
            begin = end
            if end < total and hopeless is not None and hopeless(scorer.score()):
                break
        return scorer.score()

    def confirm(self, model: Model) -> Score:
        """Score over all samples of a model run whole, as a user will run it: no segments, no cache."""
        self.reference()
        assert self._reference is not None
        session, scorer = load_session(model, threads=self.threads, arena=False), Scorer(self.metrics)
        for chunk in self._chunks(0, len(self.dataset)):
            outputs = _all_outputs(model, session, chunk.inputs)
            scorer.update(outputs, chunk.labels, self._reference[chunk.index])
        return scorer.score()


def _all_outputs(model: Model, session: Any, inputs: dict[str, npt.NDArray[Any]]) -> Outputs:
    names = [value.name for value in model.proto.graph.output]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _by_sample(kept: Sequence[Outputs], total: int) -> bool:
    """Whether samples can be put into another order: each is a chunk of its own, or a row of every output."""
    if len(kept) == total:
        return True
    columns = [[outputs[name] for outputs in kept] for name in kept[0]]
    return all(
        all(array.ndim > 1 and array.shape[1:] == column[0].shape[1:] for array in column)
        and sum(len(array) for array in column) == total
        for column in columns
    )


def _permuted(kept: Sequence[Outputs], order: npt.NDArray[np.intp], size: int) -> list[Outputs]:
    """The outputs of all samples in another order, in chunks of that size; see `_by_sample`."""
    if len(kept) == len(order):
        return [kept[index] for index in order]
    joined = {name: np.concatenate([outputs[name] for outputs in kept])[order] for name in kept[0]}
    return [
        {name: array[start : start + size] for name, array in joined.items()}
        for start in range(0, len(order), size)
    ]


def evaluate_file(
    model: Model,
    dataset: Dataset,
    reference: Model | None = None,
    *,
    metric: str | object = "",
    chunk: int = 0,
    threads: int = 1,
) -> Score:
    """Score of a model as saved, run whole; against `reference` where one is given.

    metric: see `open_metric`.

    Raises DataError where the metric needs labels or a reference and there is none.
    """
    wanted = open_metric(metric, labelled=dataset.labelled)
    metrics = metrics_beside(wanted, labelled=dataset.labelled, reference=reference is not None)
    specs = input_specs(model.proto)
    size = fit_batch(chunk or _chunk_for(specs), specs)
    session = load_session(model, threads=threads)
    against = load_session(reference, threads=threads) if reference is not None else None
    scorer = Scorer(metrics)
    for batch in dataset.batches(size):
        outputs = _all_outputs(model, session, batch.inputs)
        theirs = None if reference is None else _all_outputs(reference, against, batch.inputs)
        scorer.update(outputs, batch.labels, theirs)
    return scorer.score()
