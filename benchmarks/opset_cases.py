"""One-op models for opset_sweep.py: modes, ratios, axes and types of operators that changed their meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


@dataclass
class Case:
    """A one-op model with a feed that ONNX Runtime takes."""

    name: str
    op: str
    model: onnx.ModelProto
    feed: dict[str, Any]


def one_op(
    op: str,
    opset: int,
    inputs: dict[str, Any],
    outputs: Sequence[int] = (TensorProto.FLOAT,),
    constants: dict[str, Any] | None = None,
    shapes: bool = True,
    **attributes: Any,
) -> Case:
    """A model of one node that reads `inputs`, then `constants`.

    outputs: element types, 0 for one that is left out. shapes: whether the model knows the rank of the first
    input; else that input goes through a Reshape to a shape that is fed.
    """
    constants = {name: np.asarray(values) for name, values in (constants or {}).items()}
    feed = {name: np.asarray(values) for name, values in inputs.items()}
    names = [f"y{index}" if element else "" for index, element in enumerate(outputs)]
    nodes = [helper.make_node(op, [*inputs, *constants], names, "n", **attributes)]
    if not shapes:
        first = next(iter(inputs))
        feed["shape"] = np.array(feed[first].shape)
        nodes.insert(0, helper.make_node("Reshape", [first, "shape"], ["reshaped"], "r"))
        nodes[1].input[0] = "reshaped"
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    results = [
        helper.make_tensor_value_info(name, element, None)
        for name, element in zip(names, outputs, strict=True)
        if name
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", declared, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    text = ",".join(f"{key}={value}" for key, value in attributes.items())
    shown = ",".join(f"{name}={array.tolist()}" for name, array in constants.items() if array.size < 9)
    return Case(f"{op}-{opset} {text} {shown} {'' if shapes else 'no shapes'}".strip(), op, model, feed)


def _scales() -> Iterator[tuple[int, tuple[float, ...]]]:
    """(spatial axes, ratios): whole, odd, broken, smaller than one, and mixed."""
    ratios = (0.25, 1 / 3, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0, 7 / 3, 2.6, 3.0, 4.0, 5.0)
    for first in ratios:
        yield 1, (first,)
        for second in ratios:
            yield 2, (first, second)
    for triple in ((2.0, 2.0, 2.0), (1.5, 2.0, 3.0), (0.5, 2.0, 1.0), (0.6, 0.7, 0.5)):
        yield 3, triple


def _resizing(rng: np.random.Generator) -> Iterator[Case]:
    for axes, ratios in _scales():
        x = rng.standard_normal((1, 2, *(7, 9, 6)[:axes])).astype(np.float32)
        scales = np.array([1, 1, *ratios], np.float32)
        for mode in ("nearest", "linear"):
            yield one_op("Resize", 10, {"x": x}, constants={"s": scales}, mode=mode)
            if min(ratios) >= 1:
                yield one_op("Upsample", 7, {"x": x}, mode=mode, scales=scales.tolist())
                yield one_op("Upsample", 9, {"x": x}, constants={"s": scales}, mode=mode)
            if axes == 2 and ratios[0] in (0.6, 2.0):
                yield one_op("Resize", 10, {"x": x, "s": scales}, mode=mode)
                yield one_op("Resize", 10, {"x": x}, constants={"s": scales}, shapes=False, mode=mode)
    x = rng.standard_normal((5, 6)).astype(np.float32)
    for mode in ("nearest", "linear"):
        yield one_op("Resize", 10, {"x": x}, constants={"s": np.array([0.6, 2.3], np.float32)}, mode=mode)
    whole = rng.integers(0, 200, (1, 2, 5, 6)).astype(np.uint8)
    for ratios in ((2.0, 2.0), (0.6, 1.7)):
        scales = np.array([1, 1, *ratios], np.float32)
        yield one_op("Resize", 10, {"x": whole}, (TensorProto.UINT8,), {"s": scales}, mode="nearest")
    x = rng.standard_normal((1, 2, 7, 9)).astype(np.float32)
    for opset in (11, 13):
        for mode in ("nearest", "linear", "cubic"):
            for where in (
                "half_pixel",
                "pytorch_half_pixel",
                "align_corners",
                "asymmetric",
                "tf_half_pixel_for_nn",
            ):
                for scale in (2.0, 2.6, 0.6):
                    rest = {"roi": np.zeros(0, np.float32), "s": np.array([1, 1, scale, scale], np.float32)}
                    yield one_op(
                        "Resize",
                        opset,
                        {"x": x},
                        constants=rest,
                        mode=mode,
                        coordinate_transformation_mode=where,
                    )


def _axes(rng: np.random.Generator) -> Iterator[Case]:
    for shape in ((6,), (3, 5), (2, 3, 4), (2, 3, 4, 5), (2, 5, 1, 1)):
        x = rng.standard_normal(shape).astype(np.float32)
        for op in ("Softmax", "LogSoftmax", "Hardmax"):
            for opset in (7, 11, 12):
                for axis in range(-len(shape) if opset > 10 else 0, len(shape)):
                    yield one_op(op, opset, {"x": x}, axis=axis)
                    yield one_op(op, opset, {"x": x}, shapes=False, axis=axis)
                if len(shape) > 1:
                    yield one_op(op, opset, {"x": x})
    x = rng.standard_normal((2, 3, 4, 1)).astype(np.float32)
    for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        for opset in (7, 11, 13):
            if op == "Sum" and opset == 13:
                continue
            for axes in (None, [0], [1, 2], [3]):
                chosen: dict[str, Any] = {} if axes is None else {"axes": axes}
                for keep in (0, 1):
                    yield one_op(f"Reduce{op}", opset, {"x": np.abs(x)}, keepdims=keep, **chosen)
    for opset in (7, 11, 12):
        yield one_op("Squeeze", opset, {"x": x}, axes=[3])
        yield one_op("Squeeze", opset, {"x": x})
        yield one_op("Unsqueeze", opset, {"x": x}, axes=[0, 2])
        yield one_op("Split", opset, {"x": x}, (TensorProto.FLOAT,) * 2, axis=2)
        yield one_op("Split", opset, {"x": x}, (TensorProto.FLOAT,) * 2, axis=1, split=[1, 2])
        yield one_op("Flatten", opset, {"x": x}, axis=2)
    yield one_op("Split", 13, {"x": x}, (TensorProto.FLOAT,) * 2, axis=2)


def _inputs(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.standard_normal((2, 3, 6, 5)).astype(np.float32)
    wild = np.array([[-np.inf, -1, np.nan], [0, 3, np.inf]], np.float32)
    ranges: tuple[dict[str, Any], ...] = ({}, {"min": -0.5}, {"max": 0.5}, {"min": 0.0, "max": 6.0})
    for bounds in ranges:
        for opset in (7, 10):
            yield one_op("Clip", opset, {"x": x}, **bounds)
            yield one_op("Clip", opset, {"x": wild}, **bounds)
    for opset in (7, 10):
        for mode in ("constant", "reflect", "edge"):
            for value in (0.0, 1.5):
                yield one_op("Pad", opset, {"x": x}, mode=mode, pads=[0, 0, 1, 2, 0, 0, 2, 1], value=value)
        yield one_op("Pad", opset, {"x": x}, pads=[0, 0, 1, -1, 0, 0, -2, 1])
        for kind in (np.float64, np.float16):
            element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            yield one_op("Pad", opset, {"x": x.astype(kind)}, (element,), pads=[0, 0, 1, 2] * 2, value=1.5)
    for opset in (7, 9):
        yield one_op("Slice", opset, {"x": x}, starts=[1, -2], ends=[9, 5], axes=[2, 3])
        yield one_op("Slice", opset, {"x": x}, starts=[0, 1], ends=[2, 3])
        yield one_op("TopK", opset, {"x": x}, (TensorProto.FLOAT, TensorProto.INT64), k=2, axis=2)
    yield one_op("TopK", 10, {"x": x}, (TensorProto.FLOAT, TensorProto.INT64), {"k": np.array([2])}, axis=2)
    for opset, mask in ((7, TensorProto.FLOAT), (10, TensorProto.BOOL), (12, TensorProto.BOOL)):
        chosen: dict[str, Any] = {"ratio": 0.3} if opset < 12 else {}
        yield one_op("Dropout", opset, {"x": x}, **chosen)
        yield one_op("Dropout", opset, {"x": x}, (TensorProto.FLOAT, mask))
    index = rng.integers(0, 3, (2, 2, 6, 5))
    for axis in (0, 1, -1):
        part = rng.standard_normal(index.shape).astype(np.float32)
        feed = {"x": x, "i": np.minimum(index, x.shape[axis] - 1), "u": part}
        yield one_op("Scatter", 9, feed, axis=axis)


def _statistics(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.standard_normal((2, 6, 4, 5)).astype(np.float32)
    channel = {name: rng.uniform(0.5, 2, 6).astype(np.float32) for name in ("s", "b", "m", "v")}
    for opset in (7, 9, 14):
        yield one_op("BatchNormalization", opset, {"x": x}, constants=channel, epsilon=1e-3)
    yield one_op("BatchNormalization", 7, {"x": x}, constants=channel, spatial=1)
    sample = {name: rng.uniform(0.5, 2, x.shape[1:]).astype(np.float32) for name in ("s", "b", "m", "v")}
    yield one_op("BatchNormalization", 7, {"x": x}, constants=sample, spatial=0)
    for groups in (1, 2, 3, 6):
        for opset in (18, 19, 20):
            for kind in (np.float32, np.float16):
                element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
                scale = {name: rng.uniform(0.5, 2, groups).astype(kind) for name in ("s", "b")}
                yield one_op(
                    "GroupNormalization", opset, {"x": x.astype(kind)}, (element,), scale, num_groups=groups
                )
    boxes = np.array([[0.3, 0.4, 3.1, 3.7], [1, 0, 4, 3]], np.float32)
    for opset in (10, 16):
        for mode in ("avg", "max"):
            yield one_op(
                "RoiAlign",
                opset,
                {"x": x, "r": boxes, "i": np.array([0, 1])},
                mode=mode,
                output_height=3,
                output_width=2,
            )
    grid = rng.uniform(-1.2, 1.2, (2, 3, 4, 2)).astype(np.float32)
    for mode in ("bilinear", "bicubic", "nearest"):
        for corners in (0, 1):
            yield one_op("GridSample", 16, {"x": x, "g": grid}, mode=mode, align_corners=corners)
    yield one_op("GridSample", 16, {"x": x, "g": grid})
    for axis in (None, 1, 2):
        chosen: dict[str, Any] = {} if axis is None else {"axis": axis}
        yield one_op("DFT", 17, {"x": x[..., :1]}, **chosen)
        yield one_op("DFT", 17, {"x": x[..., :2]}, inverse=1, **chosen)


def _pooling(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.standard_normal((1, 3, 7, 8)).astype(np.float32)
    same = ("SAME_UPPER", "SAME_LOWER")
    paddings: list[dict[str, Any]] = [{}, {"pads": [1, 0, 1, 1]}, *({"auto_pad": word} for word in same)]
    for op in ("MaxPool", "AveragePool", "LpPool"):
        for opset in (7, 8, 10, 11, 12):
            for extra in paddings:
                yield one_op(op, opset, {"x": x}, kernel_shape=[3, 2], strides=[2, 2], **extra)
            if opset >= 10 and op != "LpPool":
                for pads in ([0, 0, 0, 0], [1, 1, 1, 1]):
                    more: dict[str, Any] = {"ceil_mode": 1, "pads": pads}
                    yield one_op(op, opset, {"x": x}, kernel_shape=[3, 3], strides=[2, 2], **more)
            if op == "AveragePool":
                more = {"count_include_pad": 1, "pads": [1, 1, 1, 1]}
                yield one_op(op, opset, {"x": x}, kernel_shape=[3, 3], strides=[2, 2], **more)
    weight = {"w": rng.standard_normal((3, 2, 3, 3)).astype(np.float32)}
    for opset in (7, 10):
        yield one_op(
            "ConvTranspose", opset, {"x": x}, constants=weight, strides=[2, 2], output_padding=[1, 0]
        )
        for pad in ("SAME_UPPER", "SAME_LOWER"):
            yield one_op("ConvTranspose", opset, {"x": x}, constants=weight, strides=[2, 2], auto_pad=pad)
        yield one_op(
            "ConvTranspose", opset, {"x": x}, constants=weight, strides=[2, 2], output_shape=[16, 17]
        )
    for blocks in (1, 2):
        wide = rng.standard_normal((1, 4 * blocks, 4, 6)).astype(np.float32)
        yield one_op("DepthToSpace", 7, {"x": wide}, blocksize=2)
        yield one_op("SpaceToDepth", 7, {"x": wide}, blocksize=2)


def _sequences(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.standard_normal((4, 2, 3)).astype(np.float32)
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        weights = {
            "w": rng.standard_normal((2, gates * 5, 3)).astype(np.float32),
            "r": rng.standard_normal((2, gates * 5, 5)).astype(np.float32),
            "b": rng.standard_normal((2, gates * 10)).astype(np.float32),
        }
        for opset in (7, 13):
            for extra in ({}, {"linear_before_reset": 1} if op == "GRU" else {"clip": 0.5}):
                kinds = (TensorProto.FLOAT, TensorProto.FLOAT)
                yield one_op(
                    op, opset, {"x": x}, kinds, weights, hidden_size=5, direction="bidirectional", **extra
                )
    a, b = rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    for opset in (7, 9, 11):
        yield one_op("Gemm", opset, {"a": a, "b": b, "c": b[0]}, alpha=0.5, beta=2.0)
    for op in ("Max", "Min", "Sum", "Mean"):
        yield one_op(op, 8, {"a": a, "b": a[:1]})
        yield one_op(op, 7, {"a": a, "b": a + 1})
    for op in ("And", "Or", "Xor"):
        yield one_op(op, 7, {"a": a > 0, "b": a[:1] > 0.3}, (TensorProto.BOOL,))
    for op in ("Add", "Sub", "Mul", "Div", "Pow", "PRelu"):
        yield one_op(op, 7, {"a": np.abs(a), "b": np.abs(a[:1])})
    for op in ("Greater", "Less"):
        yield one_op(op, 7, {"a": a, "b": a[:1]}, (TensorProto.BOOL,))
    yield one_op("Erf", 9, {"a": a})
    yield one_op(
        "OneHot",
        9,
        {"i": np.array([0, 2, -1])},
        constants={"d": np.array(3), "v": np.array([2, 5], np.float32)},
    )
    yield one_op("Range", 11, {"a": np.float32(1), "b": np.float32(9), "c": np.float32(0.7)})
    yield one_op("Reshape", 7, {"a": a}, constants={"s": np.array([0, 2, -1])})
    yield one_op("Cast", 7, {"a": a * 9}, (TensorProto.INT32,), to=TensorProto.INT32)
    yield one_op("Shape", 7, {"a": a}, (TensorProto.INT64,))
    yield one_op("ArgMax", 7, {"a": a.round()}, (TensorProto.INT64,), axis=1)
    yield one_op(
        "QuantizeLinear", 10, {"a": a}, (TensorProto.UINT8,), {"s": np.float32(0.02), "z": np.uint8(99)}
    )
    codes = rng.integers(0, 255, (3, 4)).astype(np.uint8)
    yield one_op("DequantizeLinear", 10, {"a": codes}, constants={"s": np.float32(0.02), "z": np.uint8(99)})


def hand_made(seed: int = 0) -> Iterator[Case]:
    """What onnx's own cases do not try."""
    rng = np.random.default_rng(seed)
    for make in (_resizing, _axes, _inputs, _statistics, _pooling, _sequences):
        yield from make(rng)
