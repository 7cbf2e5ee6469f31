"""Products of matrices."""

from __future__ import annotations

import torch

from onnxq.training.ops.registry import Call, Optional, Tensor, register

__all__: list[str] = []


@register("MatMul")
def matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@register("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Optional = None) -> Tensor:
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    product = a @ b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


@register("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.attrs["equation"], *inputs)
