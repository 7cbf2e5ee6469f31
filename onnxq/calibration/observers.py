"""From the statistics of a tensor to the range that its quantizer covers.

Every method takes (statistics, bits) and gives (low, high) within [min, max]; the quantizer's business is to
widen the range to hold zero. A tensor is one-sided when min >= 0 or max <= 0.

percentile: p percent of the values stay inside; (100 - p) / 2 are cut at each end, or all at the far one.
entropy: as TensorRT. Over clipping thresholds T, P is the histogram of |x| up to T with the clipped mass in
    its last bin; Q is the same without it, merged to the quantizer's levels and spread again over the bins
    that hold values. The T of least KL(P || Q) wins. Two-sided tensors have half the levels per side.
mse: minimises the expected squared error of a uniform quantizer over the histogram, values spread evenly in
    each bin, first by shrinking both ends together, then each end on its own.
output: as mse for tensors that no layer reads; the others take the range that does their readers' outputs
    least harm (onnxq/calibration/output_error.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.statistics import TensorStatistics
from passes.core.errors import DataError, UserError

__all__ = ["METHODS", "Method", "entropy", "min_max", "mse", "parse_method", "percentile"]

_THRESHOLDS = 256
_SHRINKS = np.linspace(1.0, 0.02, 50)


class Method(Protocol):
    """From statistics and a bit width to (low, high); one signature, though not all need the bits."""

    def __call__(self, stats: TensorStatistics, bits: int) -> tuple[float, float]: ...


def min_max(stats: TensorStatistics, bits: int) -> tuple[float, float]:  # noqa: ARG001
    """The full range."""
    return _span(stats)


def percentile(p: float = 99.99) -> Method:
    """A method that keeps p percent, 0 < p <= 100; each end is within one bin of numpy's percentile."""
    if not 0 < p <= 100:
        raise UserError(
            f"calibration method percentile:{p:g}: not in (0, 100]; use for example percentile:99.99."
        )

    def method(stats: TensorStatistics, bits: int) -> tuple[float, float]:  # noqa: ARG001
        low, high = _span(stats)
        cut = (100 - p) / 100
        if low >= 0:
            return low, _quantile(stats, 1 - cut)
        if high <= 0:
            return _quantile(stats, cut), high
        return _quantile(stats, cut / 2), _quantile(stats, 1 - cut / 2)

    return method


def entropy(stats: TensorStatistics, bits: int) -> tuple[float, float]:
    """The range of least KL divergence; the full one when the histogram is no finer than the levels."""
    low, high = _span(stats)
    counts, width = stats.magnitudes()
    levels = 1 << (bits if low >= 0 or high <= 0 else bits - 1)
    if len(counts) <= levels or low == high:
        return low, high
    # Zero is exact in every quantizer: a peak there must not count as lost when its level is merged.
    counts[0] = min(counts[0], counts[1])
    step = -(-(len(counts) - levels) // _THRESHOLDS)
    # Counted down from the full range, which must be among the candidates.
    ends = list(range(len(counts), levels - 1, -step))
    losses = [_divergence(counts, end, levels) for end in ends]
    threshold = ends[int(np.argmin(losses))] * width
    return max(low, -threshold), min(high, threshold)


def mse(stats: TensorStatistics, bits: int) -> tuple[float, float]:
    """The range of least expected squared quantization error, among shrunken full ranges."""
    full_low, full_high = _span(stats)
    if full_low == full_high:
        return full_low, full_high
    edges, counts = stats.edges(), stats.counts
    end = int(np.flatnonzero(counts)[-1]) + 1
    edges, counts = edges[: end + 1].copy(), counts[:end]
    # The outer bins reach only to min and max; where that leaves a point, it gets some width.
    edges[0] = full_low
    edges[-1] = max(full_high, edges[-2] + 1e-3 * stats.width)
    density = counts / np.diff(edges)

    def best(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> tuple[float, float]:
        losses = [_squared_error(edges, density, a, b, bits) for a, b in zip(lows, highs, strict=True)]
        index = int(np.argmin(losses))
        return float(lows[index]), float(highs[index])

    low, high = min(full_low, 0.0), max(full_high, 0.0)
    low, high = best(low * _SHRINKS, high * _SHRINKS)
    same = np.ones_like(_SHRINKS)
    if full_low < 0 < full_high:
        # The present pair comes first in each grid, so that no step makes the error larger.
        low, high = best(np.append(low, full_low * _SHRINKS), np.append(high, high * same))
        low, high = best(np.append(low, low * same), np.append(high, full_high * _SHRINKS))
    return max(low, full_low), min(high, full_high)


def _span(stats: TensorStatistics) -> tuple[float, float]:
    if stats.count == 0:
        raise DataError(
            f"tensor '{stats.name}': no values were seen; calibrate with at least one sample in which it is "
            "not empty, or exclude the layers that read it."
        )
    return stats.min, stats.max


def _quantile(stats: TensorStatistics, q: float) -> float:
    """As np.percentile(method='linear'): between neighbouring order statistics, each known to a bin."""
    position = q * (stats.count - 1)
    lower = int(position)
    cumulative = np.cumsum(stats.counts)
    values = []
    for rank in (lower, min(lower + 1, stats.count - 1)):
        index = int(np.searchsorted(cumulative, rank, side="right"))
        inside = rank - int(cumulative[index] - stats.counts[index]) + 0.5
        value = (stats.first + index + inside / int(stats.counts[index])) * stats.width
        values.append(min(max(value, stats.min), stats.max))
    return values[0] + (position - lower) * (values[1] - values[0])


def _divergence(counts: NDArray[np.int64], end: int, levels: int) -> float:
    kept = counts[:end].astype(np.float64)
    p = kept.copy()
    p[-1] += counts[end:].sum()
    starts = np.arange(levels) * end // levels
    filled = (kept > 0).astype(np.float64)
    sums, holders = np.add.reduceat(kept, starts), np.add.reduceat(filled, starts)
    means = np.divide(sums, holders, out=np.zeros(levels), where=holders > 0)
    q = np.repeat(means, np.diff(np.append(starts, end))) * filled
    if q.sum() == 0:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    support = p > 0
    if not q[support].all():
        # The last bin has only clipped mass, which Q cannot express; TensorRT smooths by a trifle.
        q = np.maximum(q, 1e-9)
    return float(np.sum(p[support] * np.log(p[support] / q[support])))


def _squared_error(
    edges: NDArray[np.float64],
    density: NDArray[np.float64],
    low: float,
    high: float,
    bits: int,
) -> float:
    """Integral of (q(x) - x)^2 times density in closed form; q rounds to 2**bits points in [low, high]."""
    top = (1 << bits) - 1
    step = (high - low) / top
    if step == 0:
        return float("inf")
    u = (edges - low) / step
    k = np.rint(u).clip(0, top)
    r = u - k
    # The antiderivative of (q(x) - x)^2 in units of step^3: 1/12 per level passed, and the cubic of the rest.
    primitive = k / 12 + r * r * r / 3
    return float(np.dot(np.diff(primitive), density)) * step**3


def _plain(name: str, method: Method) -> Callable[[str], Method]:
    def make(argument: str) -> Method:
        if argument:
            raise UserError(
                f"calibration method {name}: takes no value, got {argument!r}; write {name} alone."
            )
        return method

    return make


def _percentile(argument: str) -> Method:
    try:
        return percentile(float(argument)) if argument else percentile()
    except ValueError as error:
        raise UserError(
            f"calibration method percentile: {argument!r} is no number; use percentile:99.99."
        ) from error


METHODS: dict[str, Callable[[str], Method]] = {
    "minmax": _plain("minmax", min_max),
    "percentile": _percentile,
    "entropy": _plain("entropy", entropy),
    "mse": _plain("mse", mse),
    "output": _plain("output", mse),
}


def parse_method(spec: str) -> Method:
    """The method that a text such as minmax or percentile:99.9 names; UserError lists the names."""
    name, _, argument = spec.partition(":")
    if name not in METHODS:
        raise UserError(f"calibration method {spec!r} is unknown; use one of {', '.join(METHODS)}.")
    return METHODS[name](argument)
