"""Pruning, Hutchinson and the regularizer at work, with cases computed by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from onnxq.training.bits import LayerBits, compression, omega_k, prune
from onnxq.training.data import generator
from onnxq.training.hessian import traces
from onnxq.training.msq import Msq, MsqOptions
from onnxq.training.network import Network
from tests.nets import Net

Tensor = torch.Tensor


def layers(*entries: tuple[int, int, int, float]) -> list[LayerBits]:
    """(weights, bits, k, beta) each."""
    return [LayerBits(f"l{i}", w, n, k, b) for i, (w, n, k, b) in enumerate(entries)]


def bits(found: list[LayerBits]) -> list[int]:
    return [layer.bits for layer in found]


def test_compression_by_hand() -> None:
    """32 * 400 / (8 * 100 + 2 * 300) = 9.142857."""
    assert compression(layers((100, 8, 1, 0), (300, 2, 1, 0))) == pytest.approx(12800 / 1400)


def test_k_is_1_where_omega_is_above_the_mean() -> None:
    assert omega_k([1.0, 2.0, 9.0]) == [2, 2, 1]


def test_a_round_takes_k_bits_where_beta_is_below_alpha() -> None:
    held = layers((100, 8, 1, 0.1), (100, 8, 2, 0.2), (100, 8, 2, 0.5))
    assert bits(prune(held, alpha=0.3, target=16)) == [7, 6, 8]


def test_nothing_goes_beyond_the_target() -> None:
    """8, 8 is 4x; after the first layer 32 * 200 / (100 * 7 + 100 * 8) = 4.267 >= 4.2: the second keeps its
    bits."""
    held = layers((100, 8, 1, 0.2), (100, 8, 1, 0.1))
    assert bits(prune(held, alpha=0.3, target=4.2)) == [8, 7]


def test_the_last_round_goes_by_beta_until_the_target_is_reached() -> None:
    """Whatever beta is: lowest first, each in turn, then again: 8 8 -> 6 8 -> 6 6 -> 4 6 is 6.4x."""
    held = layers((100, 8, 2, 0.6), (100, 8, 2, 0.9))
    assert bits(prune(held, alpha=0.3, target=6.4, last=True)) == [4, 6]
    assert bits(prune(held, alpha=0.3, target=6.4)) == [8, 8]


def test_the_pace_asks_for_some_of_it_earlier() -> None:
    held = layers((100, 8, 2, 0.6), (100, 8, 2, 0.9))
    assert bits(prune(held, alpha=0.3, target=16, pace=4.5)) == [6, 8]


def test_two_bits_are_the_least() -> None:
    held = layers((100, 3, 2, 0.0), (100, 2, 1, 0.0))
    assert bits(prune(held, alpha=0.3, target=16, last=True)) == [2, 2]


def test_hutchinson_is_exact_for_a_diagonal_hessian() -> None:
    """loss = sum a_i w_i^2 + b v^3: traces 2 sum a and 6 b v, with any signs."""
    a = torch.tensor([1.0, 2.0, 3.0])
    weights = {"w": torch.randn(3), "v": torch.tensor([2.0])}

    def loss(held: Mapping[str, Tensor]) -> Tensor:
        return (a * held["w"] ** 2).sum() + 0.5 * (held["v"] ** 3).sum()

    found = traces(loss, weights, 1, generator(0, 3, 0))
    assert found["w"] == pytest.approx(12.0)
    assert found["v"] == pytest.approx(6.0)


def test_hutchinson_approaches_the_exact_trace() -> None:
    """A small network with a full Hessian; the mean of many probes against torch's own Hessian."""
    x, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    weights = {"a": torch.randn(3, 4, dtype=torch.float64), "b": torch.randn(4, 2, dtype=torch.float64)}

    def loss(held: Mapping[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.tanh(x @ held["a"]) @ held["b"], labels)

    found = traces(loss, weights, 4000, generator(0, 3, 1))
    for name, weight in weights.items():
        exact = torch.autograd.functional.hessian(lambda w, n=name: loss({**weights, n: w}), weight)  # type: ignore[no-untyped-call]
        trace = float(exact.reshape(weight.numel(), weight.numel()).trace())
        assert found[name] == pytest.approx(trace, rel=0.2)


def made(learned: bool = False, strength: str = "plain") -> tuple[Network, Msq]:
    net = Net()
    y = net.conv(net.input("x", ("N", 2, 4, 4)), 2, 6, bias=False, name="conv")
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    network = Network(net.model(net.add("Gemm", y, net.weight(6, 3), name="fc")))
    options = MsqOptions(8.0, 100, lam=0.25, learned=learned, strength=strength)  # type: ignore[arg-type]
    network.specialise(torch.randn(4, 2, 4, 4))
    return network, Msq(network, options, sample=torch.randn(4, 2, 4, 4))


def test_the_regularizer_adds_lambda_sign_over_twice_s() -> None:
    """The added gradient is autograd's of lambda * sum |B_k(u(w))|, with s = max|w|."""
    network, method = made()
    for layer in method.layers:
        network.parameter_of(layer.weight).grad = torch.zeros_like(network.parameter_of(layer.weight))
    method.add_gradients(0)
    for layer in method.layers:
        weight = network.parameter_of(layer.weight)
        leaf = weight.detach().clone().requires_grad_()
        # Half of float16: the step is what the file holds, so s is 128 of them.
        s = weight.detach().abs().max().div(128).half().float() * 128
        u = leaf / (2 * s) + 0.5
        m = 7
        kept = (torch.clamp(torch.round(u * 2**m), 0, 2**m - 1) / 2**m).detach()
        (0.25 * (u - kept).abs().sum()).backward()
        assert leaf.grad is not None
        inside = (u > 0) & (u < 1)
        torch.testing.assert_close(weight.grad[inside], leaf.grad[inside])  # type: ignore[index]


def test_strength_gradient_makes_lambda_a_ratio() -> None:
    """Every weight's gradient changes by 0.25 of the layer's root mean square, or by nothing."""
    network, method = made(strength="gradient")
    for layer in method.layers:
        network.parameter_of(layer.weight).grad = torch.full_like(network.parameter_of(layer.weight), 4.0)
    method.add_gradients(0)
    for layer in method.layers:
        grad = network.parameter_of(layer.weight).grad
        assert grad is not None
        change = set((grad - 4.0).abs().reshape(-1).tolist())
        assert change <= {0.0, 1.0}
        assert 1.0 in change


def test_no_regularizer_once_the_target_is_reached_or_the_time_is_over() -> None:
    network, method = made()
    weight = network.parameter_of(method.layers[0].weight)
    weight.grad = torch.zeros_like(weight)
    method.add_gradients(100)
    assert not weight.grad.any()
    method.held = [LayerBits(held.name, held.weights, 4) for held in method.held]
    method.add_gradients(0)
    assert not weight.grad.any()


def test_a_pressed_weight_ends_on_even_codes() -> None:
    """With the regularizer alone, nonzero LSBs go away."""
    network, method = made()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = method.status()["nonzero_lsb"]
    for _ in range(60):
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)
        method.add_gradients(0)
        optimizer.step()
    assert before > 0.3
    assert method.status()["nonzero_lsb"] < 0.1


def test_rounds_reach_the_compression() -> None:
    network, method = made(learned=True)
    x = torch.randn(16, 2, 4, 4)

    def loss(values: Mapping[str, Tensor] | None, step: int) -> Tensor:
        found: Tensor = torch.nn.functional.cross_entropy(network(x, values=values), torch.arange(16) % 3)
        return found

    changed = [step for step in range(100) if method.end_step(step, loss)]
    assert changed == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99][: len(changed)]
    assert compression(method.held) >= 8.0
    assert method.result().bits == {held.name: held.bits for held in method.held}
