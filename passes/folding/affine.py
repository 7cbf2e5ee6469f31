"""The maths of merging a per-channel affine map y = a*x + b into a weighted node. Used by `fold_batchnorm`.

All arithmetic is float64; results are cast to the weight's dtype and refused when they are not finite.
a, b: [C], C the channels the map runs over. W as ONNX lays it out.

Behind the node, C = output channels:
    Conv            W [C, Cin/g, *k]      W'[c] = a[c] W[c]            bias' = a bias + b
    ConvTranspose   W [Cin, C/g, *k]      W'[i, j] = a[c] W[i, j], c = group(i) * C/g + j
    Gemm            alpha A W + beta B    W' = W with column c times a[c], B' = a (beta B) + b, beta' = 1
    MatMul          X W, X of rank 2      becomes Gemm(X, W', b)
Before the node, C = input channels:
    Conv            W'[o, i] = W[o, i] a[c],  c = group(o) * Cin/g + i
                    bias' = bias + sum over i, k of W[o, i, k] b[c]
    Gemm, MatMul    row c of W times a[c], B' = beta B + alpha (b W)

Legality, each a reason for refusal:
1. Weight and bias are constant, of the same float type; the affine map has as many channels as they.
2. Before a Conv: it pads nothing, or b = 0 (the padding is zero after the map, b before it).
3. Before a Gemm: A is not transposed. MatMul: its weight is a matrix on the right, its data of rank 2.
4. Every number of the result is finite in the weight's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.graph.editing import is_constant, values
from passes.graph.inference import Types

__all__ = ["WEIGHTED", "Affine", "Merged", "merge_before", "merge_behind"]

Array = npt.NDArray[np.float64]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift, per channel; both float64 of shape [C]."""

    scale: Array
    shift: Array


@dataclass(frozen=True)
class Merged:
    """New parameters of a weighted node, in the dtype of the old weight."""

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any]

    def apply(self, node: gs.Node, constant: Callable[[str, npt.NDArray[Any]], gs.Constant]) -> None:
        """Give the node these parameters, as tensors of its own (others may read the old ones)."""
        slot = node.inputs[2] if len(node.inputs) > 2 else None
        named = slot is not None and not slot.is_empty()
        hint = slot.name if named and slot is not None else f"{node.name}_bias"
        bias = constant(hint, self.bias)
        node.inputs[1] = constant(node.inputs[1].name, self.weight)
        if slot is not None:
            node.inputs[2] = bias
        else:
            node.inputs.append(bias)
        if node.op == "MatMul":
            node.op = "Gemm"
        if node.op == "Gemm":
            node.attrs["beta"] = 1.0


def _parameters(node: gs.Node, types: Types) -> tuple[Array, Array | None, npt.DTypeLike] | str:
    """Weight, bias (None where there is none) and their dtype; or why they cannot be edited (rule 1)."""
    if len(node.inputs) < 2 or not is_constant(node.inputs[1]):
        return "its weight is not constant"
    weight = values(node.inputs[1])
    if weight.dtype.kind != "f":
        return f"its weight is {weight.dtype}, not float"
    if node.op == "MatMul":
        if weight.ndim != 2 or types.rank(node.inputs[0]) != 2:
            return "only a MatMul of two matrices has its channels where BatchNormalization has them"
        return weight.astype(np.float64), None, weight.dtype
    problem = _misfit(node, weight)
    if problem:
        return problem
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if bias is not None and not is_constant(bias):
        return "its bias is not constant"
    if bias is None:
        return weight.astype(np.float64), None, weight.dtype
    return weight.astype(np.float64), values(bias).astype(np.float64), weight.dtype


def _misfit(node: gs.Node, weight: npt.NDArray[Any]) -> str:
    """Why the shapes of weight and bias do not fit, which the checker does not compare; empty if they do."""
    gemm = node.op == "Gemm"
    groups = 1 if gemm else int(node.attrs.get("group", 1))
    if weight.ndim < 2 or groups < 1 or weight.shape[0] % groups:
        return f"its weight of shape {list(weight.shape)} does not fit {groups} group(s)"
    if gemm:
        channels = weight.shape[0] if node.attrs.get("transB", 0) else weight.shape[1]
    else:
        channels = weight.shape[0] if node.op == "Conv" else weight.shape[1] * groups
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    shape = values(bias).shape if bias is not None and is_constant(bias) else (channels,)
    if shape == (channels,) or (gemm and (not shape or shape[-1] in (1, channels))):
        return ""
    return f"its bias of shape {list(shape)} does not fit {channels} channels"


def _finished(weight: Array, bias: Array, dtype: npt.DTypeLike) -> Merged | str:
    with np.errstate(over="ignore", invalid="ignore"):
        merged = Merged(weight.astype(dtype), bias.astype(dtype))
    if not (np.isfinite(merged.weight).all() and np.isfinite(merged.bias).all()):
        return f"the merged weights are not finite in {np.dtype(dtype)}"
    return merged


def _wide(vector: Array, rank: int, axis: int) -> Array:
    return vector.reshape([-1 if index == axis else 1 for index in range(rank)])


def _gemm(node: gs.Node, weight: Array, bias: Array | None) -> tuple[Array, Array, float]:
    """Weight as [in, out], the bias with beta in it, and alpha."""
    turned = weight.T if node.attrs.get("transB", 0) else weight
    beta = float(node.attrs.get("beta", 1.0))
    held = np.zeros(turned.shape[1]) if bias is None else bias * beta
    return turned, held, float(node.attrs.get("alpha", 1.0))


def merge_behind(node: gs.Node, affine: Affine, types: Types) -> Merged | str:
    """Parameters of `node` with the map that follows it merged in, or the reason why not."""
    found = _parameters(node, types)
    if isinstance(found, str):
        return found
    weight, bias, dtype = found
    a, b = affine.scale, affine.shift
    groups = int(node.attrs.get("group", 1))
    if node.op in ("Gemm", "MatMul"):
        turned, held, _ = _gemm(node, weight, bias)
        if turned.shape[1] != len(a):
            return f"it has {turned.shape[1]} output channels, not {len(a)}"
        scaled = turned * a[None, :]
        return _finished(scaled.T if node.attrs.get("transB", 0) else scaled, held * a + b, dtype)
    channels = weight.shape[0] if node.op == "Conv" else weight.shape[1] * groups
    if channels != len(a):
        return f"it has {channels} output channels, not {len(a)}"
    if node.op == "Conv":
        scaled = weight * _wide(a, weight.ndim, 0)
    else:
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        per_group = a.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        scaled = (split * per_group).reshape(weight.shape)
    return _finished(scaled, (0.0 if bias is None else bias) * a + b, dtype)


def _pads_nothing(node: gs.Node) -> bool:
    auto = node.attrs.get("auto_pad", "NOTSET")
    return auto == "VALID" or (auto == "NOTSET" and not any(node.attrs.get("pads", [])))


def merge_before(node: gs.Node, affine: Affine, types: Types) -> Merged | str:
    """Parameters of `node` with the map in front of it merged in, or the reason why not."""
    if node.op == "ConvTranspose":
        return "a map in front of a ConvTranspose is not merged: its borders see fewer taps"
    found = _parameters(node, types)
    if isinstance(found, str):
        return found
    weight, bias, dtype = found
    a, b = affine.scale, affine.shift
    if node.op in ("Gemm", "MatMul"):
        if node.attrs.get("transA", 0):
            return "its data is transposed"
        turned, held, alpha = _gemm(node, weight, bias)
        if turned.shape[0] != len(a):
            return f"it has {turned.shape[0]} input channels, not {len(a)}"
        scaled = turned * a[:, None]
        merged_bias = held + alpha * (b @ turned)
        return _finished(scaled.T if node.attrs.get("transB", 0) else scaled, merged_bias, dtype)
    if b.any() and not _pads_nothing(node):
        return "it pads with zeros, which the shift in front of it would turn into something else"
    groups = int(node.attrs.get("group", 1))
    if weight.shape[1] * groups != len(a):
        return f"it has {weight.shape[1] * groups} input channels, not {len(a)}"
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    shape = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    shifted = (split * b.reshape(shape)).sum(axis=tuple(range(2, split.ndim))).reshape(-1)
    scaled = (split * a.reshape(shape)).reshape(weight.shape)
    return _finished(scaled, (0.0 if bias is None else bias) + shifted, dtype)
