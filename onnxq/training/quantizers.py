"""Quantizers of weights and activations with straight-through gradients.

Weights, one module a layer. With u the weight scaled to [0, 1], n bits, c the integer code, s half the range
(METHODS.md, MSQ, equations 1 to 4):

- RoundClamp (MSQ): c = min(round(2^n u), 2^n - 1), u = w / (2 s) + 1/2, value s (2 c / 2^n - 1). With
  step = 2 s / 2^n that is step * (c - 2^(n-1)): signed integers of n bits with zero point 0, as they are
  stored. A code whose k lowest bits are zero is the code c / 2^k of n - k bits with the same value: the bins
  are aligned.
- DoReFa: W_n = round((2^n - 1) u) / (2^n - 1). Its zero lies between two codes, and its bins are not aligned.
- LSQ (Esser et al. 2020): step * clamp(round(w / step)), with the gradient of the step as in equation 3 there
  and its scale 1 / sqrt(weights * highest code).
- GSE: the format's own encoder, nearest (runtime_ops/gse.py); the gradient passes straight through.

Steps are what float16 holds, since bit streams store them so.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from passes.formats import Scheme, format_of
from runtime_ops import IntegerFormat, symmetric_scale

__all__ = [
    "DoReFa",
    "Encoded",
    "Lsq",
    "RoundClamp",
    "fitted_step",
    "half_step",
    "learned_step",
    "lsb",
    "pass_through",
    "round_clamp",
    "round_dorefa",
    "scaled_gradient",
]

Tensor = torch.Tensor
# The least normal number of float16: codes times a denormal step would not be what the file gives.
_LEAST_STEP = 2.0**-14


def pass_through(value: Tensor, source: Tensor) -> Tensor:
    """`value` forwards, the gradient of `source` backwards (equation 2)."""
    return source + (value - source).detach()


def round_clamp(u: Tensor, bits: int) -> Tensor:
    """RoundClamp's integer code of u in [0, 1] (equation 4), as floats."""
    return torch.clamp(torch.round(u * 2.0**bits), 0, 2**bits - 1)


def round_dorefa(u: Tensor, bits: int) -> Tensor:
    """DoReFa's integer code of u in [0, 1] (equation 1), as floats."""
    return torch.round(u * (2**bits - 1))


def lsb(u: Tensor, bits: int, k: int) -> Tensor:
    """B_k(u) = u - min(round(2^m u), 2^m - 1) / 2^m, m = n - k (equation 5); its gradient is 1, the rounded
    part being held constant. In units of u; times 2^n it is in units of codes, as in equation 3."""
    m = bits - k
    return u - (round_clamp(u, m) / 2.0**m).detach()


def half_step(step: Tensor) -> Tensor:
    """The step as float16 holds it, straight through."""
    held = torch.clamp(step.detach(), min=_LEAST_STEP).half().to(step.dtype)
    return pass_through(held, step)


def scaled_gradient(value: Tensor, factor: Tensor | float) -> Tensor:
    """The value itself, with its gradient times `factor`."""
    part = value * factor
    return value.detach() + (part - part.detach())


def learned_step(w: Tensor, step: Tensor, low: Any, high: Any, factor: Tensor | float) -> Tensor:
    """LSQ's forward: gradient 1 to w inside of the range and 0 outside; to the step code - w / step, or the
    code, times `factor`. low, high: of the codes, numbers or scalars."""
    held = scaled_gradient(half_step(step), factor)
    scaled = torch.clamp(w / held, low, high)
    return pass_through(torch.round(scaled), scaled) * held


def fitted_step(weight: Tensor, bits: int) -> float:
    """The step of least squares for signed codes of `bits` bits, one for the tensor."""
    array = weight.detach().cpu().float().numpy().reshape(1, -1)
    scale = symmetric_scale(array, IntegerFormat(bits), (0, 1), search=True)
    return max(float(scale.reshape(())), _LEAST_STEP)


class RoundClamp(nn.Module):
    """One weight tensor in n bits with one step.

    learned: the step is a parameter that starts at the least-squares one, and is fitted anew when bits go,
    unless keeping it is better (then nothing changes but the codes' length); otherwise s = max|w| at all
    times, as in the paper. `levels` is a buffer, so that a compiled graph stays valid when bits go.
    """

    def __init__(self, weight: Tensor, bits: int, *, learned: bool = True) -> None:
        super().__init__()
        self.bits, self.learned = bits, learned
        first = fitted_step(weight, bits) if learned else self._full(weight, bits)
        self.step = nn.Parameter(torch.tensor(first, dtype=weight.dtype), requires_grad=learned)
        self.register_buffer("levels", torch.tensor(float(2**bits), dtype=weight.dtype))
        self.factor = 1 / math.sqrt(weight.numel())
        self.levels: Tensor

    @staticmethod
    def _full(weight: Tensor, bits: int) -> float:
        return max(float(weight.detach().abs().max()) / 2.0 ** (bits - 1), _LEAST_STEP)

    def current_step(self, weight: Tensor) -> Tensor:
        """The step for this weight, as the file holds it; a scalar without gradient."""
        step = self.step if self.learned else weight.detach().abs().amax() / (self.levels / 2)
        return half_step(step).detach()

    def forward(self, weight: Tensor) -> Tensor:
        low, high = -self.levels / 2, self.levels / 2 - 1
        if self.learned:
            return learned_step(weight, self.step, low, high, self.factor * torch.rsqrt(high))
        step = self.current_step(weight)
        return pass_through(torch.clamp(torch.round(weight / step), low, high) * step, weight)

    def unit(self, weight: Tensor) -> Tensor:
        """u, clamped to [0, 1]; gradient 1 / (2 s)."""
        return torch.clamp(weight / (self.current_step(weight) * self.levels) + 0.5, 0, 1)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Signed codes, float, of the weight's shape."""
        half = self.levels / 2
        return torch.clamp(torch.round(weight / self.current_step(weight)), -half, half - 1)

    @torch.no_grad()
    def set_bits(self, weight: Tensor, bits: int) -> None:
        """Go on with `bits` bits; a learned step becomes the better of the kept and the fitted one."""
        kept = float(self.step.detach()) * 2 ** (self.bits - bits)
        self.bits = bits
        self.levels.fill_(float(2**bits))
        if not self.learned:
            return
        errors = {}
        for step in (kept, fitted_step(weight, bits)):
            self.step.fill_(step)
            errors[step] = float((self(weight) - weight).square().sum())
        self.step.fill_(min(errors, key=lambda step: errors[step]))


class Lsq(nn.Module):
    """Signed symmetric integers with learned steps: one a tensor, an output channel or a block.

    rows: how the weight lies as [channels, groups, size] is told by axis and block; low, high: of the codes.
    """

    def __init__(
        self, weight: Tensor, bits: int, *, axis: int = 0, granularity: str = "tensor", block: int = 0
    ) -> None:
        super().__init__()
        fmt = IntegerFormat(bits, narrow=bits >= 8)
        self.bits, self.axis, self.granularity, self.block = bits, axis, granularity, block
        self.low, self.high = float(fmt.lowest), float(fmt.highest)
        grouped = self._grouped(weight.detach())
        axes = (0, 1, 2) if granularity == "tensor" else (1, 2) if granularity == "channel" else (2,)
        array = grouped.cpu().float().numpy()
        first = torch.from_numpy(symmetric_scale(array, fmt, axes, search=bits < 8)).to(weight)
        self.step = nn.Parameter(torch.clamp(first, min=_LEAST_STEP))
        self.factor = 1 / math.sqrt(weight.numel() / first.numel() * max(self.high, 1.0))

    def _grouped(self, weight: Tensor) -> Tensor:
        """[channels, groups, size]; the last group of a row filled up with zeros."""
        rows = weight.movedim(self.axis, 0).flatten(1)
        size = self.block or rows.shape[1]
        spare = -rows.shape[1] % size
        return nn.functional.pad(rows, (0, spare)).reshape(len(rows), -1, size)

    def _restored(self, grouped: Tensor, weight: Tensor) -> Tensor:
        moved = weight.movedim(self.axis, 0)
        rows = grouped.flatten(1)[:, : moved[0].numel()]
        return rows.reshape(moved.shape).movedim(0, self.axis)

    def forward(self, weight: Tensor) -> Tensor:
        grouped = self._grouped(weight)
        return self._restored(learned_step(grouped, self.step, self.low, self.high, self.factor), weight)

    @torch.no_grad()
    def rows(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(codes [C, K], steps [C, groups]) as the file holds them."""
        grouped, step = self._grouped(weight), half_step(self.step).detach()
        codes = torch.clamp(torch.round(grouped / step), self.low, self.high).flatten(1)
        row_size = weight.numel() // grouped.shape[0]
        return codes[:, :row_size], step.expand(grouped.shape[0], grouped.shape[1], 1)[..., 0]


class DoReFa(nn.Module):
    """DoReFa's weights: u = w / (2 s) + 1/2 with s = max|w|, W_n = s (2 c / (2^n - 1) - 1).

    The codes 2 c - (2^n - 1) are odd integers of n + 1 bits with the step s / (2^n - 1): that is how they are
    stored, and why the file is larger than n bits.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def current_step(self, weight: Tensor) -> Tensor:
        return half_step(weight.detach().abs().amax() / (2**self.bits - 1)).detach()

    def codes(self, weight: Tensor) -> Tensor:
        """Odd signed codes of n + 1 bits."""
        top = float(2**self.bits - 1)
        u = torch.clamp(weight.detach() / (2 * top * self.current_step(weight)) + 0.5, 0, 1)
        return 2.0 * round_dorefa(u, self.bits) - top

    def forward(self, weight: Tensor) -> Tensor:
        return pass_through(self.codes(weight) * self.current_step(weight), weight)


class Encoded(nn.Module):
    """Weights by the encoder of their format, anew each time, straight through."""

    def __init__(self, scheme: Scheme, axis: int) -> None:
        super().__init__()
        self.scheme, self.axis = scheme, axis

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _encoded(self, weight: Tensor) -> Tensor:
        """By the reference itself: what is trained is what the file will hold, bit for bit."""
        array = np.ascontiguousarray(weight.detach().cpu().numpy(), np.float32)
        real = format_of(self.scheme).encode(array, self.scheme, self.axis).decoded
        return torch.from_numpy(real).to(weight)

    def forward(self, weight: Tensor) -> Tensor:
        return pass_through(self._encoded(weight), weight)
