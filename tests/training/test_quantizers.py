"""MSQ's equations and the other quantizers, with cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxq.training.activations import RangeQuantizer
from onnxq.training.quantizers import (
    DoReFa,
    Encoded,
    Lsq,
    RoundClamp,
    half_step,
    lsb,
    round_clamp,
    round_dorefa,
)
from passes.placement.activations import activation_range
from passes.policy import Scheme
from runtime_ops import dequantize, encode_gse, quantize
from runtime_ops.gse import Encoder


def test_round_clamp_by_hand() -> None:
    """n = 3: 8 u rounded, at most 7. 0.3 * 8 = 2.4, 0.45 * 8 = 3.6, 0.95 * 8 = 7.6 -> 8 -> 7."""
    u = torch.tensor([0.0, 0.3, 0.45, 0.95, 1.0])
    assert round_clamp(u, 3).tolist() == [0, 2, 4, 7, 7]


def test_dorefa_by_hand() -> None:
    """n = 2: 3 u rounded. 0.3 * 3 = 0.9, 0.55 * 3 = 1.65."""
    assert round_dorefa(torch.tensor([0.0, 0.3, 0.55, 1.0]), 2).tolist() == [0, 1, 2, 3]


def test_b_k_by_hand() -> None:
    """n = 3, k = 1, m = 2: 0.3 - round(1.2) / 4 = 0.05; 0.45 - 2 / 4 = -0.05; 0.95 - 3 / 4 = 0.2 (clamped).
    k = 2, m = 1: 0.3 - 1 / 2 = -0.2; 0.2 - 0 = 0.2."""
    found = lsb(torch.tensor([0.3, 0.45, 0.95]), 3, 1)
    torch.testing.assert_close(found, torch.tensor([0.05, -0.05, 0.2]))
    torch.testing.assert_close(lsb(torch.tensor([0.3, 0.2]), 3, 2), torch.tensor([-0.2, 0.2]))


def test_b_k_of_grid_points_is_what_the_lowest_bits_hold() -> None:
    """Equation 3: B_k = c_n - 2^k c_{n-k}. 5 = 101b lies as near to 4 as to 6, and 2.5 rounds to even: 4."""
    codes = torch.arange(8.0)
    found = lsb(codes / 8, 3, 1) * 8
    assert found.tolist() == [0, 1, 0, -1, 0, 1, 0, 1]


def test_gradient_of_the_regularizer_is_the_sign_of_b_k() -> None:
    u = torch.tensor([0.3, 0.45, 0.95, 0.5], requires_grad=True)
    torch.autograd.backward(lsb(u, 3, 1).abs().sum())
    assert u.grad is not None
    assert u.grad.tolist() == [1, -1, 1, 0]


def test_bins_of_round_clamp_are_aligned_and_those_of_dorefa_are_not() -> None:
    """Code 2 c of n bits has the value of code c of n - 1 bits with RoundClamp: lost LSBs cost nothing."""
    even = torch.arange(0, 8, 2)
    assert torch.equal(even / 8, torch.arange(4) / 4)
    wide, narrow = even / 7, torch.arange(4) / 3
    assert not torch.allclose(wide, narrow)
    # In u: where 3 bits give an even code, 2 bits of RoundClamp give its half; DoReFa's often do not.
    u = torch.linspace(0, 0.93, 931)
    three = round_clamp(u, 3)
    kept = three % 2 == 0
    assert torch.equal(round_clamp(u, 2)[kept], three[kept] / 2)
    three = round_dorefa(u, 3)
    kept = three % 2 == 0
    assert (round_dorefa(u, 2)[kept] != three[kept] / 2).float().mean() > 0.05


def test_round_clamp_module_is_signed_integers_with_zero_point_0() -> None:
    """s = max|w| = 1, n = 2: step 0.5, codes -2 to 1; 0.8 is code 2, clamped to 1."""
    weight = torch.tensor([-1.0, -0.3, 0.2, 0.8])
    quantizer = RoundClamp(weight, 2, learned=False)
    assert quantizer.codes(weight).tolist() == [-2, -1, 0, 1]
    assert quantizer(weight).tolist() == [-1.0, -0.5, 0.0, 0.5]
    u = quantizer.unit(weight)
    assert (round_clamp(u, 2) - 2).tolist() == quantizer.codes(weight).tolist()
    torch.testing.assert_close(u, torch.tensor([0.0, 0.35, 0.6, 0.9]))


def test_losing_zero_bits_changes_no_value() -> None:
    """Weights on even codes: one bit less, the same values, with s = max|w| and with a learned step."""
    codes = torch.tensor([-8.0, -4, -2, 0, 2, 6])
    for learned in (False, True):
        weight = codes / 8
        quantizer = RoundClamp(weight, 4, learned=learned)
        with torch.no_grad():
            quantizer.step.fill_(0.125)
        before = quantizer(weight).detach()
        assert torch.equal(before, weight)
        quantizer.set_bits(weight, 3)
        torch.testing.assert_close(quantizer(weight).detach(), weight, rtol=1e-3, atol=1e-3)


def test_a_lost_bit_never_costs_more_than_keeping_the_step() -> None:
    weight = torch.randn(500)
    quantizer = RoundClamp(weight, 4)
    kept = float(quantizer.step.detach()) * 4
    error = float((torch.clamp(torch.round(weight / kept), -2, 1) * kept - weight).square().sum())
    quantizer.set_bits(weight, 2)
    assert float((quantizer(weight).detach() - weight).square().sum()) <= error * 1.0001


def test_straight_through() -> None:
    weight = torch.tensor([-0.9, 0.1, 0.4], requires_grad=True)
    for quantizer in (
        RoundClamp(weight, 3, learned=False),
        DoReFa(3),
        Encoded(Scheme.parse("gse4:block8"), 0),
    ):
        shaped = weight if not isinstance(quantizer, Encoded) else weight.reshape(1, 3)
        (grad,) = torch.autograd.grad((quantizer(shaped) * torch.tensor([1.0, 2.0, 3.0])).sum(), weight)
        assert grad.tolist() == [1, 2, 3]


def test_lsq_gradients_by_hand() -> None:
    """n = 2, codes -2 to 1, step 1, weights -3 (outside), 0.3, 0.8, 5 (outside); gradient of the sum.

    To weights: 0, 1, 1, 0. To the step: -2, 0 - 0.3, 1 - 0.8, 1, times 1 / sqrt(4 * 1) = 0.5.
    """
    weight = torch.tensor([[-3.0, 0.3, 0.8, 5.0]], requires_grad=True)
    quantizer = Lsq(weight, 2)
    with torch.no_grad():
        quantizer.step.fill_(1.0)
    torch.autograd.backward(quantizer(weight).sum())
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0, 1, 1, 0]]
    assert quantizer.step.grad is not None
    assert float(quantizer.step.grad) == pytest.approx((-2 - 0.3 + 0.2 + 1) * 0.5)


@pytest.mark.parametrize(
    ("granularity", "block", "steps"), [("tensor", 0, 1), ("channel", 0, 4), ("block", 5, 8)]
)
def test_lsq_has_a_step_a_tensor_channel_or_block(granularity: str, block: int, steps: int) -> None:
    weight = torch.randn(3, 4, 3) * torch.tensor([1.0, 10, 100, 0.1]).view(1, 4, 1)
    quantizer = Lsq(weight, 4, axis=1, granularity=granularity, block=block)
    assert quantizer.step.numel() == steps
    real = quantizer(weight).detach()
    codes, held = quantizer.rows(weight)
    spread = held.repeat_interleave(block or codes.shape[1], 1)[:, : codes.shape[1]]
    assert torch.equal((codes * spread).reshape(4, 3, 3).movedim(0, 1), real)
    assert codes.abs().max() <= 8


def test_steps_are_what_float16_holds() -> None:
    step = half_step(torch.tensor([0.1, 1e-9, 3.0]))
    assert torch.equal(step.half().float(), step)
    assert float(step[1]) == 2.0**-14


def test_dorefa_module_gives_odd_codes_of_one_bit_more() -> None:
    weight = torch.linspace(-1, 1, 9)
    quantizer = DoReFa(2)
    assert set(quantizer.codes(weight).tolist()) == {-3, -1, 1, 3}
    torch.testing.assert_close(
        quantizer(weight).unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1]), rtol=1e-3, atol=1e-3
    )


def test_gse_is_the_reference_bit_for_bit() -> None:
    weight = torch.randn(3, 5, 3, 3)
    encoders: tuple[Encoder, ...] = ("nearest", "paper")
    for encoder in encoders:
        found = Encoded(Scheme.parse(f"gse4:block16:{encoder}"), 0)(weight).numpy()
        wanted = encode_gse(weight.reshape(3, -1).numpy(), 4, 16, encoder).decoded()
        assert np.array_equal(found.reshape(3, -1), wanted)


@pytest.mark.parametrize("kind", ["pact", "lsq"])
@pytest.mark.parametrize("text", ["uint3:asym", "uint8:asym", "int4", "uint8:sym", "int8:asym"])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_activations_are_what_the_pass_will_write(kind: str, text: str, low: float) -> None:
    """The range that training hands over gives the very step and zero point back, and the same values."""
    scheme = Scheme.parse(text)
    x = torch.rand(4, 50) * (2 - low) + low
    quantizer = RangeQuantizer(x, scheme, kind)  # type: ignore[arg-type]
    written = activation_range(*quantizer.range(), scheme)
    step = float(quantizer._step().detach())
    assert float(written.scale) == pytest.approx(step, rel=1e-6)
    codes = quantize(x.numpy(), written.scale, written.zero_point, written.format)
    wanted = dequantize(codes, written.scale, written.zero_point)
    np.testing.assert_allclose(quantizer(x).detach().numpy(), wanted, atol=step * 1e-3)


def test_pact_gradient_by_hand() -> None:
    """alpha = 1: values above it push alpha by their gradient, the others do not (Choi et al., equation
    3)."""
    quantizer = RangeQuantizer(torch.rand(4, 4), Scheme.parse("uint4:asym"), "pact")
    with torch.no_grad():
        quantizer.value.fill_(1.0)
    x = torch.tensor([[0.2, 0.6, 1.5, 7.0]], requires_grad=True)
    (quantizer(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 2, 0, 0]]
    assert quantizer.value.grad is not None
    assert float(quantizer.value.grad) == 7.0
