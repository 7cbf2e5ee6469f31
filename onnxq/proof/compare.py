"""How far the outputs of two models are apart, and how far float arithmetic alone takes them.

A rewrite that keeps the function may round differently: by 1e-4 of the largest output, and by no more than
the given model differs from itself when ONNX Runtime does not optimise it and its input moves a little. Each
output is held to its own noise, so that a random one does not excuse the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxq.proof.feeds import Feed
from onnxq.proof.running import Outputs, numeric

__all__ = [
    "DECIDED",
    "EXACT",
    "MOVES",
    "apart",
    "contradicted",
    "moved",
    "nonfinite",
    "own_noise",
    "sqnr",
    "unlike_shapes",
]

# Largest difference of a rewrite that keeps the function, as a share of the largest output.
EXACT = 1e-4
# The same for floats of 16 bits: some of their steps.
_HALF = {"float16": 2e-2, "bfloat16": 1e-1}
# Inputs move by so much to learn what rounding does to an output: to floats, and to whole numbers, truth
# values and text, which jump where floats cross a border and are compared by the share that differs.
MOVES, DECIDED = (1e-6, 1e-5), 1e-4


def allowed(dtype: np.dtype[Any]) -> float:
    """Largest relative difference between outputs of this type that rounding explains."""
    return _HALF.get(dtype.name, EXACT)


def unlike_shapes(given: Outputs, made: Outputs, *, ranks_only: bool = False) -> str | None:
    """The first output whose shape or type differs, told; None where all agree.

    ranks_only: the model decides sizes by values (a number of boxes, say), so that only ranks are compared.
    """
    for name, before in given.items():
        if name not in made:
            return f"output '{name}' is missing"
        one, other = numeric(before), numeric(made[name])
        if one is None or other is None:
            if type(before) is not type(made[name]):
                return f"output '{name}' is a {type(made[name]).__name__}, and was a {type(before).__name__}"
            continue
        same = one.ndim == other.ndim if ranks_only else one.shape == other.shape
        if not same or one.dtype != other.dtype:
            return f"output '{name}' is {_kind(other)} where the given model gives {_kind(one)}"
    return None


def _kind(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype.name} [{', '.join(map(str, array.shape))}]"


def nonfinite(given: Outputs, made: Outputs) -> str | None:
    """The first float output that is NaN or infinite at a place where the given model's is finite."""
    for name, before in given.items():
        one, other = numeric(before), numeric(made.get(name))
        if one is None or other is None or one.dtype.kind not in "fV" or other.dtype.kind not in "fV":
            continue
        bad = ~np.isfinite(_wide(other))
        if one.shape == other.shape:
            bad &= np.isfinite(_wide(one))
        else:
            bad &= bool(np.isfinite(_wide(one)).all())
        if bad.any():
            return name
    return None


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(array).astype(np.float64)


def apart(before: Any, after: Any) -> float:
    """How far two values of one output are apart; at most EXACT where rounding explains it.

    Floats: the largest difference as a share of the largest given value, weighed by what the type allows, and
    infinite where NaN or infinity are in other places. Whole numbers, truth values and text: the share of
    elements that differ. Sequences and maps: infinite where they are not equal.
    """
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return 0.0 if _equal(before, after) else math.inf
    if before.shape != after.shape:
        return math.inf
    one, other = numeric(before), numeric(after)
    if one is None or other is None or one.dtype.kind not in "fV":
        return float(np.mean(before != after)) if before.size else 0.0
    a, b = _wide(one), _wide(other)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    top = float(np.abs(a[finite]).max(initial=0.0))
    largest = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    if not math.isfinite(largest):
        return math.inf
    if largest == 0:
        return 0.0
    return largest / max(top, 1e-30) * (EXACT / allowed(one.dtype))


def _equal(given: Any, made: Any) -> bool:
    """Equality of text, sequences and maps, arrays inside of them included."""
    if isinstance(given, np.ndarray) and isinstance(made, np.ndarray):
        return given.shape == made.shape and bool((given == made).all())
    if isinstance(given, (list, tuple)) and isinstance(made, (list, tuple)):
        return len(given) == len(made) and all(map(_close, given, made))
    if isinstance(given, dict) and isinstance(made, dict):
        return given.keys() == made.keys() and all(_close(given[key], made[key]) for key in given)
    return bool(given == made)


def _close(given: Any, made: Any) -> bool:
    one, other = np.asarray(given), np.asarray(made)
    if one.dtype.kind in "fV" and other.dtype.kind in "fV":
        return apart(one, other) <= EXACT
    return _equal(given, made)


def moved(feed: Feed, by: float) -> Feed:
    """The feed with every float moved by such a share of itself, up or down."""
    rng = np.random.default_rng(0)
    return {
        name: (array * (1 + by * rng.choice((-1.0, 1.0), array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feed.items()
    }


def own_noise(given: Any, others: list[Any]) -> float:
    """How far values of one output are apart in runs of one model that should agree; infinite where even
    their shapes are not the same."""
    return max((apart(given, other) for other in others), default=0.0)


def sqnr(given: list[Outputs], made: list[Outputs]) -> float | None:
    """Signal to quantization noise of the worst float output, in dB, over all feeds; None where there is no
    float output of the same shape, infinite where none differs."""
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for before, after in zip(given, made, strict=True):
        for name, value in before.items():
            one, other = numeric(value), numeric(after.get(name))
            if one is None or other is None or one.dtype.kind not in "fV" or one.shape != other.shape:
                continue
            a, b = _wide(one), _wide(other)
            finite = np.isfinite(a) & np.isfinite(b)
            signal[name] = signal.get(name, 0.0) + float(np.square(a[finite]).sum())
            noise[name] = noise.get(name, 0.0) + float(np.square(a[finite] - b[finite]).sum())
    ratios = [_decibels(signal[name], noise[name]) for name in signal if signal[name] > 0]
    return min(ratios, default=None)


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def contradicted(value: onnx.ValueInfoProto, answers: Sequence[Any]) -> str:
    """A sentence where a declared output shape is not what the model gives; empty where it is."""
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        return ""
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
    for answer in answers:
        real = getattr(answer, "shape", None)
        if real is None:
            continue
        fits = len(real) == len(dims) and all(d <= 0 or d == r for d, r in zip(dims, real, strict=True))
        if not fits:
            declared = ", ".join("?" if d < 0 else str(d) for d in dims)
            return (
                f"output '{value.name}' is declared as [{declared}] and has the shape {list(real)}; "
                "the declaration is not believed"
            )
    return ""
