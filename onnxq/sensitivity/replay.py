"""The float network in segments over one dataset, walked once from front to back.

Only one cut's activations are held at a time (two while the next are made from them): those that enter the
segment whose layers are being varied, in memory or, where that would go over the budget, in a file.
Behind the varied segment the rest of the network runs as one session, which all variants of it share.
Sessions are single-threaded and chunks of the data run side by side, so that results do not depend on the
number of threads.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxq.data import Dataset, fit_batch, input_specs
from onnxq.data.inputs import sample_size
from onnxq.evaluation.segments import Segment, choose_anchors, iter_segments, split
from onnxq.files import Scratch
from onnxq.metrics.logits import Logits, logits_of
from onnxq.sensitivity.cut import CutActivations
from onnxq.session import load_session
from passes.graph.model import Model

__all__ = ["Replay"]

Array = npt.NDArray[Any]
# Numbers that enter a run: enough to fill the kernels, little enough that activations stay in the caches.
_CHUNK_NUMBERS = 655_360
_MOST_SAMPLES = 32
_CUTS = 20


class Replay:
    """Walks a model; `position` is the segment whose input is held.

    budget: bytes of activations held in memory; more go to a file. Use as a context manager.
    """

    def __init__(self, model: Model, data: Dataset, *, threads: int = 1, budget: int = 2**29) -> None:
        self.model, self.data, self.threads, self.budget = model, data, max(threads, 1), budget
        specs = input_specs(model.proto)
        cut = len(specs) == 1 and len(model.proto.graph.output) == 1
        self.anchors = _anchors(model, len(data), budget) if cut else {}
        self.segments: list[Segment] = split(model, self.anchors)
        self._first_chunk = fit_batch(_samples(sample_size(specs)), specs)
        self._fixed = self._first_chunk == 1 and fit_batch(2, specs) == 1
        self.position = 0
        self.spilled = 0
        self._held: CutActivations | None = None
        self._scratch: Scratch | None = None
        self._rest: tuple[int, Any] | None = None
        self._pool = ThreadPoolExecutor(self.threads)

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._held is not None:
            self._held.close()
        self._held = self._scratch = None

    @property
    def chunk(self) -> int:
        """Samples per run at the present position."""
        if self._held is None or self._fixed:
            return self._first_chunk
        return _samples(math.prod(self._held.shape[1:]))

    def advance(self, position: int) -> None:
        """Bring the held activations to the input of segment `position`, running each float segment once."""
        while self.position < position:
            segment = self.segments[self.position]
            session = self._open(segment.proto)
            target: CutActivations | None = None
            for part in self._run(segment.input, [session], 0, len(self.data)):
                if target is None:
                    target = self._space((len(self.data), *part.shape[1:]), self.position + 1)
                target.append(part)
            if self._held is not None:
                self._held.close()
            self._held, self.position = target, self.position + 1

    def open(self, models: Sequence[onnx.ModelProto], *, arena: bool = True) -> list[Any]:
        """Sessions of what stands in the place of float segments."""
        return [self._open(proto, arena) for proto in models]

    def rest(self, last: int) -> list[Any]:
        """The session of all that follows segment `last`; empty behind the last one. One is kept."""
        if last + 1 >= len(self.segments):
            return []
        if self._rest is None or self._rest[0] != last:
            self._rest = None  # before the next is opened: each holds the weights of most of the network
            ending = self.segments[last].output
            anchors = {name: shape for name, shape in self.anchors.items() if name == ending}
            [tail] = deque(iter_segments(self.model, anchors), maxlen=1)
            self._rest = (last, self._open(tail.proto))
        return [self._rest[1]]

    def logits(self, sessions: Sequence[Any], start: int, stop: int) -> Logits:
        """Logits [stop - start, classes] of sessions run one behind the other on the held activations.

        `start` is a multiple of `chunk`, or 0.
        """
        name = self.segments[self.position].input
        return np.concatenate([logits_of([part]) for part in self._run(name, sessions, start, stop)])

    def _run(self, name: str, sessions: Sequence[Any], start: int, stop: int) -> Iterator[Array]:
        def work(feed: dict[str, Array]) -> Array:
            value: Array | None = None
            for session in sessions:
                given = feed if value is None else {session.get_inputs()[0].name: value}
                value = session.run([session.get_outputs()[0].name], given)[0]
            assert value is not None  # there is at least one session
            return value

        return self._map(work, name, start, stop)

    def probe(self, session: Any, start: int, stop: int) -> Iterator[list[Array]]:
        """All outputs of a session on the held activations, chunk by chunk."""
        name = self.segments[self.position].input
        return self._map(lambda feed: session.run(None, feed), name, start, stop)

    def _map(
        self, work: Callable[[dict[str, Array]], Any], name: str, start: int, stop: int
    ) -> Iterator[Any]:
        """`work` over the chunks in order; at most two chunks a thread are decoded ahead."""
        pending: deque[Future[Any]] = deque()
        for feed in self._feeds(name, start, stop):
            if self.threads == 1:
                yield work(feed)
                continue
            pending.append(self._pool.submit(work, feed))
            if len(pending) > 2 * self.threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _feeds(self, name: str, start: int, stop: int) -> Any:
        if self._held is None:
            for batch in self.data.batches(self.chunk, start, stop):
                yield batch.inputs
            return
        size = self.chunk
        for begin in range(start, stop, size):
            yield {name: self._held.read(begin, min(begin + size, stop))}

    def _space(self, shape: tuple[int, ...], position: int) -> CutActivations:
        """Room for a cut's activations beside those it is made from: memory within the budget, or a file."""
        held = 0 if self._held is None else self._held.memory
        if held + 4 * math.prod(shape) <= self.budget:
            return CutActivations(shape)
        self._scratch = self._scratch or Scratch()
        self.spilled += 1
        return CutActivations(shape, self._scratch.path / f"{position}.f32")

    def _open(self, proto: onnx.ModelProto, arena: bool = True) -> Any:
        # With its arena: without one, ONNX Runtime maps and unmaps large tensors anew in every run.
        return load_session(Model(proto, self.model.name), threads=1, arena=arena)


def _samples(size: int) -> int:
    return min(max(_CHUNK_NUMBERS // max(size, 1), 1), _MOST_SAMPLES)


def _anchors(model: Model, samples: int, budget: int) -> dict[str, tuple[int, ...]]:
    """Cuts spread over the model; besides, every other cut whose activations fit an eighth of the budget."""
    spread = choose_anchors(model, _CUTS)
    every = choose_anchors(model, max(len(model.proto.graph.node), 1))
    small = {name: shape for name, shape in every.items() if 32 * samples * math.prod(shape) <= budget}
    chosen = spread | small
    return {name: shape for name, shape in every.items() if name in chosen}
