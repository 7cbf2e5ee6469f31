"""Latency of programs on one device: warm-up, turns, median and quartiles, outliers, throttling.

All programs of one measurement run in turns, one run each, the order reversed every other turn, so that all
of them see the same load and the same temperature. What counts is the ratio of neighbours, candidate over
baseline: a burst of other load or a lower clock strikes both. Rounds are repeated until the interval of the
median ratio is tight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.evaluation.latency import Timing, take_turns
from onnxq.runners.base import Feed, Program

__all__ = ["Comparison", "compare", "in_turns"]

_Values = npt.NDArray[np.float64]

# McGill's notch: the median is known to about 95 % within this many inter-quartile ranges over sqrt(n).
_NOTCH = 1.57
# Tukey's far out: beyond three inter-quartile ranges outside the quartiles.
_FAR_OUT = 3.0
# A baseline that became this much slower between the first and the last third of a measurement is throttled.
_DRIFT = 1.15
_FEW = 6


@dataclass(frozen=True)
class Comparison:
    """A candidate beside its baseline on one device.

    Attributes:
        ours, theirs: times of candidate and baseline without the turns that count as outliers, in
        milliseconds. ratio: median over the turns of candidate / baseline. low, high: the interval of about
        95 % of that median. outliers: turns left out. warning: what the user must know (throttling), or
        empty.
    """

    ours: Timing
    theirs: Timing
    ratio: float
    low: float
    high: float
    outliers: int
    warning: str = ""

    @property
    def runs(self) -> int:
        return len(self.ours.times) + self.outliers

    def overlaps(self, other: Comparison) -> bool:
        """Whether the clock cannot tell the two apart."""
        return self.low <= other.high and other.low <= self.high


def in_turns(programs: Sequence[Program], feeds: Sequence[Feed], runs: int) -> list[Timing]:
    """Times of each program over `runs` turns of one run each. Raises DeviceError."""

    def clock(program: Program, feed: Feed) -> float:
        (time,) = program.time(feed, 1)
        return time

    pairs = zip(programs, feeds, strict=True)
    return take_turns([functools.partial(clock, program, feed) for program, feed in pairs], runs)


def compare(
    candidate: Program,
    baseline: Program,
    feed: Feed,
    *,
    runs: int = 20,
    warmup: int = 3,
    rounds: int = 4,
    tight: float = 0.02,
    before: float | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """The candidate's latency beside the baseline's.

    runs: turns of a round. rounds: at most this many; fewer where the interval of the ratio is within
    `tight` of it. before: the baseline's median when it was first measured in this run (ms), for seeing a
    device that became slower since. told: gets a warning about throttling.

    Raises:
        DeviceError: the device failed.
    """
    for program in (candidate, baseline) * warmup:
        program.time(feed, 1)
    ours, theirs = np.empty(0), np.empty(0)
    for _ in range(rounds):
        one, other = in_turns([candidate, baseline], [feed, feed], runs)
        ours, theirs = np.append(ours, one.times), np.append(theirs, other.times)
        ratios, kept = _without_outliers(ours / theirs)
        median, low, high = _interval(ratios)
        if high - low <= 2 * tight * median:
            break
    baseline_times = Timing(theirs)
    warning = _throttling(baseline_times, before)
    if warning:
        told(warning)
    dropped = len(ours) - int(kept.sum())
    return Comparison(Timing(ours[kept]), Timing(theirs[kept]), median, low, high, dropped, warning)


def _without_outliers(values: _Values) -> tuple[_Values, npt.NDArray[np.bool_]]:
    low, high = np.percentile(values, [25, 75])
    reach = _FAR_OUT * (high - low)
    kept = (values >= low - reach) & (values <= high + reach)
    return values[kept], kept


def _interval(values: _Values) -> tuple[float, float, float]:
    """Median and the interval that holds it with about 95 %."""
    median = float(np.median(values))
    low, high = np.percentile(values, [25, 75])
    half = _NOTCH * float(high - low) / float(np.sqrt(len(values)))
    return median, median - half, median + half


def _throttling(baseline: Timing, before: float | None) -> str:
    """A sentence where the baseline slowed down, during this measurement or since the first one."""
    slower = ""
    if len(baseline.times) >= _FEW and baseline.drift > _DRIFT:
        slower = f"became {baseline.drift:.2f} times slower while it was measured"
    elif before is not None and baseline.median > _DRIFT * before:
        slower = f"takes {baseline.median / before:.2f} times as long as at the start of the run"
    if not slower:
        return ""
    return (
        f"the float baseline {slower}: the device throttles or is busy, so only ratios count here; "
        "let it cool, or keep other load away"
    )
