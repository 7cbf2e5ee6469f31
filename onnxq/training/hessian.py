"""Traces of the loss's Hessian per layer, by Hutchinson: Tr(H) = E(v^T H v), v of independent signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

__all__ = ["traces"]

Tensor = torch.Tensor


def traces(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    probes: int,
    random: torch.Generator,
) -> dict[str, float]:
    """Estimated trace of the Hessian of each weight's own block. loss: of the weights, twice
    differentiable."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    names, tensors = list(leaves), list(leaves.values())
    gradients = torch.autograd.grad(loss(leaves), tensors, create_graph=True)
    found = dict.fromkeys(names, 0.0)
    for _ in range(probes):
        signs = [torch.randint(0, 2, tensor.shape, generator=random).to(tensor) * 2 - 1 for tensor in tensors]
        products = torch.autograd.grad(gradients, tensors, signs, retain_graph=True)
        for name, sign, product in zip(names, signs, products, strict=True):
            found[name] += float((sign * product).sum()) / probes
    return found
