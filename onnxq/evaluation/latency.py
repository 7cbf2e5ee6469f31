"""Latency, measured in turns with the float model so that both see the same load of the machine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Timing", "interleaved"]

Feed = dict[str, npt.NDArray[Any]]


class Timing:
    """Times of one session in milliseconds, in the order of the runs."""

    def __init__(self, times: list[float]) -> None:
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


def _time(session: Any, feed: Feed) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return (time.perf_counter() - start) * 1e3


def interleaved(sessions: list[Any], feed: Feed, *, runs: int = 20, warmup: int = 3) -> list[Timing]:
    """Median and quartiles of each session over `runs` runs; one run of each per turn, the order reversed
    every other turn so that no session always follows the same one.
    """
    for _ in range(warmup):
        for session in sessions:
            session.run(None, feed)
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(runs):
        order = range(len(sessions)) if turn % 2 == 0 else range(len(sessions) - 1, -1, -1)
        for index in order:
            times[index].append(_time(sessions[index], feed))
    return [Timing(values) for values in times]
