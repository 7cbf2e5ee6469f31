"""Columns and moments against an explicit im2col, and against the convolution itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxq.calibration.patches import ConvPatches, MatrixRows, patches_of
from onnxq.rounding.moments import Accumulator
from onnxq.rounding.store import Store
from passes.graph.layers import Layer

Array = npt.NDArray[Any]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_shape": [3, 3]},
    "padded": {"pads": [1, 2, 0, 1]},
    "strided": {"strides": [2, 3], "pads": [1, 1, 1, 1]},
    "dilated": {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "same upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid": {"auto_pad": "VALID", "strides": [1, 2]},
}


def conv(x: Array, weight: Array, groups: int, attributes: dict[str, Any]) -> Array:
    """The convolution in ONNX Runtime."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups, **attributes)
    kinds = [helper.make_tensor_value_info(name, 1, None) for name in "xy"]
    graph = helper.make_graph([node], "conv", kinds[:1], kinds[1:], [numpy_helper.from_array(weight, "w")])
    kinds[0].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_value_info("x", 1, x.shape).type.tensor_type.shape
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def layer_of(weight: Array, groups: int, op: str = "Conv") -> Layer:
    return Layer("layer", op, "w", weight.shape, 0, groups, 0)


def patches(weight: Array, groups: int, attributes: dict[str, Any]) -> ConvPatches:
    found = patches_of(layer_of(weight, groups), attributes, 1)
    assert isinstance(found, ConvPatches)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("groups", [1, 2, 6], ids=["dense", "grouped", "depthwise"])
def test_weights_times_columns_are_the_convolution(case: str, groups: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 9, 11)).astype(np.float32)
    weight = rng.normal(size=(12, 6 // groups, 3, 3)).astype(np.float32)
    wanted = conv(x, weight, groups, CASES[case])
    found = patches(weight, groups, CASES[case])
    assert found.positions(x.shape) == wanted.shape[2] * wanted.shape[3]
    picked = np.arange(1, found.positions(x.shape), 3)
    columns = found.columns(x, picked)
    product = weight.reshape(groups, 12 // groups, -1) @ columns
    flat = found.outputs(wanted, picked)
    np.testing.assert_allclose(product.reshape(12, -1), flat, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_one_and_three_spatial_axes(rank: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, *(7, 6, 5)[:rank])).astype(np.float32)
    weight = rng.normal(size=(6, 2, *(3, 2, 3)[:rank])).astype(np.float32)
    attributes = {"pads": [1] * 2 * rank, "strides": [2] * rank}
    wanted = conv(x, weight, 2, attributes)
    found = patches(weight, 2, attributes)
    picked = np.arange(found.positions(x.shape))
    product = weight.reshape(2, 3, -1) @ found.columns(x, picked)
    np.testing.assert_allclose(product.reshape(6, -1), found.outputs(wanted, picked), atol=1e-5)


def explicit_im2col(x: Array, kernel: int, stride: int, pad: int, dilation: int) -> Array:
    """[channels * taps, images * positions], by loops."""
    wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    span = (kernel - 1) * dilation + 1
    rows = range(0, wide.shape[2] - span + 1, stride)
    across = range(0, wide.shape[3] - span + 1, stride)
    columns = [
        wide[image, :, i : i + span : dilation, j : j + span : dilation].reshape(-1)
        for image, i, j in itertools.product(range(len(x)), rows, across)
    ]
    return np.stack(columns, 1)


@pytest.mark.parametrize("geometry", [(3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2), (1, 1, 0, 1)])
def test_moments_against_an_explicit_im2col(geometry: tuple[int, int, int, int]) -> None:
    kernel, stride, pad, dilation = geometry
    rng = np.random.default_rng(0)
    real = rng.normal(3, 1, (4, 3, 8, 8)).astype(np.float32)
    seen = real + rng.normal(0, 0.1, real.shape).astype(np.float32)
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
    found = patches(np.zeros((2, 3, kernel, kernel), np.float32), 1, attributes)
    sums = Accumulator()
    picked = np.arange(found.positions(real.shape))
    for part in (slice(0, 1), slice(1, 4)):
        sums.update(found.columns(real[part], picked), found.columns(seen[part], picked))
    a, b = (explicit_im2col(x.astype(np.float64), kernel, stride, pad, dilation) for x in (real, seen))
    held = sums.moments(centred=True)
    np.testing.assert_allclose(held.second[0], np.cov(b, bias=True).reshape(held.second[0].shape), atol=1e-5)
    mean_a, mean_b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    np.testing.assert_allclose(held.cross[0], (a - mean_a) @ (b - mean_b).T / a.shape[1], atol=1e-5)
    np.testing.assert_allclose(held.mean_float[0], mean_a[:, 0], atol=1e-5)
    raw = sums.moments(centred=False)
    np.testing.assert_allclose(raw.cross[0], a @ b.T / a.shape[1], rtol=1e-5)
    assert not raw.mean.any()


@pytest.mark.parametrize("centred", [True, False])
def test_sums_that_were_made_apart_add_up(centred: bool) -> None:
    rng = np.random.default_rng(0)
    real, seen = (rng.normal(5, 1, (2, 3, 50)).astype(np.float32) for _ in range(2))
    lag = (rng.normal(1, 1, (2, 4, 50)) + seen[:, :1]).astype(np.float32)
    first = Accumulator()
    first.update(real[..., :20].copy(), seen[..., :20].copy(), lag[..., :20])
    second = Accumulator(first)
    second.update(real[..., 20:].copy(), seen[..., 20:].copy(), lag[..., 20:])
    first.merge(second)
    held = first.moments(centred)
    base = [x - x.mean(2, keepdims=True) if centred else x for x in (real, seen, lag)]
    turned = base[1].swapaxes(1, 2) / 50
    assert held.lag is not None
    np.testing.assert_allclose(held.cross, base[0] @ turned, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(held.second, base[1] @ turned, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(held.lag, base[2] @ turned, rtol=1e-4, atol=1e-5)


def test_rows_of_a_matrix_product_from_either_side() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    right, left = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    for rows, weight, product in (
        (MatrixRows(True), right.T, x @ right),
        (MatrixRows(False), left, left @ x),
    ):
        picked = np.arange(rows.positions(x.shape))[::2]
        np.testing.assert_allclose(
            weight @ rows.columns(x, picked)[0], rows.outputs(product, picked), atol=1e-5
        )


def test_activations_over_the_budget_lie_on_disk() -> None:
    store = Store(budget=1000)
    small, large = np.arange(100, dtype=np.float32), np.arange(1000, dtype=np.float32)
    store.put("a", 0, small)
    store.put("a", 1, large)
    assert (store.held, store.spilled) == (400, 4000)
    np.testing.assert_array_equal(store.get("a", 1), large)
    store.put("a", 1, small)
    assert store.held == 800
    store.drop("a")
    assert store.held == 0
    assert not store.holds("a")


def test_onnx_attributes_are_read_as_they_come() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    found = patches(np.zeros((2, 3, 3, 3), np.float32), 1, attributes)
    assert (found.auto_pad, found.strides) == ("SAME_UPPER", (2, 2))
