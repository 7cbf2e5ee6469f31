"""Latency, measured in turns with the float model so that both see the same load of the machine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Timing", "interleaved", "take_turns"]

Feed = dict[str, npt.NDArray[Any]]


class Timing:
    """Times of one session or program in milliseconds, in the order of the runs."""

    def __init__(self, times: npt.ArrayLike) -> None:
        self.times = np.asarray(times, np.float64)

    def __add__(self, other: Timing) -> Timing:
        return Timing([*self.times.tolist(), *other.times.tolist()])

    @property
    def median(self) -> float:
        return float(np.median(self.times))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.times, [25, 75])
        return float(low), float(high)

    @property
    def drift(self) -> float:
        """Median of the last third over that of the first."""
        third = max(1, len(self.times) // 3)
        return float(np.median(self.times[-third:]) / np.median(self.times[:third]))


def take_turns(clocks: Sequence[Callable[[], float]], runs: int) -> list[Timing]:
    """What each clock tells (ms) over `runs` turns of one run each; the order is reversed every other turn,
    so that none always follows the same one.
    """
    times: list[list[float]] = [[] for _ in clocks]
    for turn in range(runs):
        order = range(len(clocks)) if turn % 2 == 0 else range(len(clocks) - 1, -1, -1)
        for index in order:
            times[index].append(clocks[index]())
    return [Timing(values) for values in times]


def _time(session: Any, feed: Feed) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return (time.perf_counter() - start) * 1e3


def interleaved(sessions: list[Any], feed: Feed, *, runs: int = 20, warmup: int = 3) -> list[Timing]:
    """Times of each session over `runs` turns, after a warm-up."""
    for _ in range(warmup):
        for session in sessions:
            session.run(None, feed)
    return take_turns([functools.partial(_time, session, feed) for session in sessions], runs)
