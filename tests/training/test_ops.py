"""Every operator of the bridge: equal to ONNX Runtime, and with gradients that agree with differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from onnxq.training.network import Network
from onnxq.training.ops.registry import OPS
from passes.graph.model import Model
from tests.nets import Net, feeds, run

I64 = np.int64
Build = Callable[[Net], str]


def ints(net: Net, *numbers: int) -> str:
    return net.constant(np.asarray(numbers, I64))


def unary(op: str, **attrs: Any) -> Build:
    return lambda net: net.add(op, net.input("x", (2, 3, 4)), **attrs)


def positive(op: str) -> Build:
    """For functions that are not defined, or have no slope, at or below 0."""

    def build(net: Net) -> str:
        x = net.input("x", (2, 3, 4))
        return net.add(op, net.add("Add", net.add("Mul", x, x), net.scalar(0.5)))

    return build


def binary(op: str) -> Build:
    def build(net: Net) -> str:
        x = net.input("x", (2, 3, 4))
        y = net.add(op, x, net.constant(net.rng.uniform(1.5, 2.5, (3, 1)).astype(net.dtype), "w"))
        return net.add("Add", y, x) if op in ("Min", "Max", "Mod") else y

    return build


def masked(op: str) -> Build:
    """A comparison or a logical operator chooses between two functions of x."""

    def build(net: Net) -> str:
        x = net.input("x", (2, 3, 4))
        other = net.add("Neg", x)
        if op in ("And", "Or"):
            condition = net.add(
                op, net.add("Greater", x, net.scalar(0.1)), net.add("Less", x, net.scalar(0.9))
            )
        elif op == "Not":
            condition = net.add("Not", net.add("Greater", x, net.scalar(0.1)))
        elif op in ("IsNaN", "IsInf"):
            condition = net.add("Not", net.add(op, x))
        else:
            condition = net.add(op, x, net.scalar(0.1))
        return net.add("Where", condition, net.add("Mul", x, x), other)

    return build


def stepped(op: str) -> Build:
    """A function of steps, times x."""

    def build(net: Net) -> str:
        x = net.input("x", (3, 4))
        return net.add("Mul", net.add(op, net.add("Mul", x, net.scalar(3.0))), x)

    return build


def cast(net: Net) -> str:
    x = net.input("x", (2, 3))
    return net.add("Mul", x, net.add("Cast", net.add("Greater", x, net.scalar(0.0)), to=net.element))


def conv(**attrs: Any) -> Build:
    def build(net: Net) -> str:
        x = net.input("x", (2, 4, 6, 5))
        groups = int(attrs.get("group", 1))
        return net.add("Conv", x, net.weight(4, 4 // groups, 3, 3), net.weight(4), **attrs)

    return build


def transposed(**attrs: Any) -> Build:
    return lambda net: net.add("ConvTranspose", net.input("x", (1, 2, 4, 3)), net.weight(2, 3, 3, 3), **attrs)


def product(op: str, x: tuple[int, ...], *weights: tuple[int, ...], **attrs: Any) -> Build:
    return lambda net: net.add(op, net.input("x", x), *(net.weight(*shape) for shape in weights), **attrs)


def pooled(op: str, **attrs: Any) -> Build:
    return lambda net: net.add(op, net.input("x", (1, 2, 6, 5)), **attrs)


def normal(op: str, *shapes: tuple[int, ...], **attrs: Any) -> Build:
    def build(net: Net) -> str:
        x = net.input("x", (2, 4, 3, 3))
        return net.add(
            op, x, *(net.constant(net.rng.uniform(0.5, 1.5, s).astype(net.dtype)) for s in shapes), **attrs
        )

    return build


def with_ints(op: str, *numbers: int, shape: tuple[int, ...] = (2, 3, 4), **attrs: Any) -> Build:
    return lambda net: net.add(op, net.input("x", shape), ints(net, *numbers), **attrs)


def resized(
    shape: tuple[int, ...], scales: tuple[float, ...] = (), sizes: tuple[int, ...] = (), **attrs: Any
) -> Build:
    def build(net: Net) -> str:
        x = net.input("x", shape)
        if sizes:
            return net.add("Resize", x, "", "", ints(net, *sizes), **attrs)
        return net.add("Resize", x, "", net.constant(np.asarray(scales, np.float32)), **attrs)

    return build


def shapes(op: str) -> Build:
    """Shape arithmetic in front of a Reshape, as exporters write it."""

    def build(net: Net) -> str:
        x = net.input("x", (2, 3, 4))
        size = net.add("Size", x) if op == "Size" else ""
        first = net.add("Gather", net.add("Shape", x), ints(net, 0), axis=0)
        if op == "Size":
            rest = net.add("Div", net.add("Unsqueeze", size, ints(net, 0)), first)
        elif op == "ConstantOfShape":
            value = helper.make_tensor("value", 7, [1], [-1])
            rest = net.add("ConstantOfShape", ints(net, 1), value=value)
        elif op == "Range":
            zero, two, one = (net.constant(np.asarray(n, I64)) for n in (0, 2, 1))
            rest = net.add(
                "Sub", net.add("Gather", net.add("Range", zero, two, one), ints(net, 0), axis=0), ints(net, 1)
            )
        elif op == "Mod":
            rest = net.add("Sub", net.add("Mod", ints(net, 7), ints(net, 2)), ints(net, 2))
        else:
            rest = net.add("Cast", net.add("Floor", net.constant(np.asarray([-0.5], np.float32))), to=7)
        return net.add("Mul", net.add("Reshape", x, net.add("Concat", first, rest, axis=0)), net.weight(12))

    return build


def two_parts(op: str, *tail: int, **attrs: Any) -> Build:
    def build(net: Net) -> str:
        x = net.input("x", (2, 4, 3))
        given = [ints(net, *tail)] if tail else []
        net.add(op, x, *given, outputs=("a", "b"), **attrs)
        return net.add("Concat", net.add("Mul", "a", "a"), "b", axis=1)

    return build


def gathered(op: str) -> Build:
    def build(net: Net) -> str:
        x = net.input("x", (2, 3))
        index = net.constant(np.asarray([[0, -1], [1, 1]], I64))
        return net.add(op, net.add("Mul", x, x), index, axis=1)

    return build


def embedded(net: Net) -> str:
    """A table that is learned, read by constant indices."""
    return net.add(
        "Add",
        net.input("x", (2, 3, 4)),
        net.add("Gather", net.weight(5, 4, name="table"), ints(net, 0, 4, 2)),
    )


def arg_max(net: Net) -> str:
    x = net.input("x", (2, 5))
    chosen = net.add("ArgMax", x, axis=1, keepdims=1)
    return net.add("Mul", net.add("GatherElements", x, chosen, axis=1), x)


CASES: dict[str, tuple[int, Build]] = {
    **{op: (17, unary(op)) for op in (
        "Abs", "Cos", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu",
        "Sigmoid", "Sin", "Softplus", "Softsign", "Tanh", "LogSoftmax", "Softmax", "GlobalAveragePool",
        "GlobalMaxPool", "Transpose", "Flatten", "LpNormalization", "Dropout")},
    **{op: (20, unary(op)) for op in ("Gelu", "Mish")},
    "Gelu tanh": (20, unary("Gelu", approximate="tanh")),
    "Swish": (24, unary("Swish", alpha=1.5)),
    "Softmax 11": (11, unary("Softmax", axis=1)),
    **{op: (17, positive(op)) for op in ("Log", "Reciprocal", "Sqrt")},
    **{op: (17, binary(op)) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "PRelu")},
    "Mod": (17, shapes("Mod")),
    "Pow": (17, lambda net: net.add("Pow", net.input("x", (2, 3)), net.scalar(2.0))),
    "Clip": (17, lambda net: net.add("Clip", net.input("x", (2, 9)), net.scalar(-0.5), net.scalar(0.7))),
    "Clip 6": (6, unary("Clip", min=-0.5, max=0.7)),
    **{op: (17, masked(op)) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not",
                                       "IsNaN", "IsInf")},
    "Equal": (17, masked("Equal")),
    **{op: (17, stepped(op)) for op in ("Ceil", "Floor", "Round", "Sign")},
    "Conv": (17, conv(pads=[1, 1, 1, 1])),
    "Conv strided": (17, conv(strides=[2, 2], pads=[0, 1, 1, 0])),
    "Conv dilated": (17, conv(dilations=[2, 1], pads=[2, 1, 2, 1])),
    "Conv depthwise": (17, conv(group=4, pads=[1, 1, 1, 1])),
    "Conv same upper": (17, conv(auto_pad="SAME_UPPER", strides=[2, 2])),
    "Conv same lower": (17, conv(auto_pad="SAME_LOWER", strides=[2, 2])),
    "ConvTranspose": (17, transposed(strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 0])),
    "ConvTranspose same": (17, transposed(strides=[2, 2], auto_pad="SAME_UPPER")),
    "MaxPool": (17, pooled("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "MaxPool ceil": (17, pooled("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    "AveragePool": (17, pooled("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "AveragePool padded": (17, pooled("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 1],
                                      count_include_pad=1)),
    "AveragePool ceil": (19, pooled("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    "Gemm": (17, product("Gemm", (3, 5), (4, 5), (4,), transB=1, alpha=0.5, beta=2.0)),
    "MatMul": (17, product("MatMul", (2, 3, 5), (5, 4))),
    "Einsum": (17, product("Einsum", (2, 3, 5), (5, 4), equation="bij,jk->bik")),
    "BatchNormalization": (17, normal("BatchNormalization", (4,), (4,), (4,), (4,))),
    "InstanceNormalization": (17, normal("InstanceNormalization", (4,), (4,))),
    "LayerNormalization": (17, normal("LayerNormalization", (3, 3), (3, 3), axis=-2)),
    "GroupNormalization": (21, normal("GroupNormalization", (4,), (4,), num_groups=2)),
    "RMSNormalization": (23, normal("RMSNormalization", (3,), axis=-1)),
    "Reshape": (17, with_ints("Reshape", 0, -1)),
    "Squeeze": (17, with_ints("Squeeze", 1, shape=(2, 1, 3))),
    "Unsqueeze": (17, with_ints("Unsqueeze", 0, -1)),
    "Expand": (17, with_ints("Expand", 2, 3, 4, shape=(3, 1))),
    "Tile": (17, with_ints("Tile", 1, 2, 1)),
    "Pad": (17, with_ints("Pad", 0, 1, 0, 0, 0, 2)),
    "Pad reflect": (17, with_ints("Pad", 0, 0, 1, 0, 0, 2, mode="reflect")),
    "Pad edge": (17, with_ints("Pad", 0, 0, 1, 0, 0, 2, mode="edge")),
    "Slice": (17, lambda net: net.add("Slice", net.input("x", (4, 6)), ints(net, 1, -1), ints(net, 4, -99),
                                      ints(net, 0, 1), ints(net, 2, -2))),
    "Slice 9": (9, unary("Slice", starts=[1], ends=[3], axes=[2])),
    "Concat": (17, two_parts("Split", axis=1)),
    "Split": (17, two_parts("Split", 1, 3, axis=1)),
    "Gather": (17, gathered("Gather")),
    "Gather table": (17, embedded),
    "GatherElements": (17, gathered("GatherElements")),
    "ArgMax": (17, arg_max),
    "Cast": (17, cast),
    "CastLike": (17, lambda net: net.add("CastLike", net.input("x", (2, 3)), net.weight(3))),
    "Trilu": (17, with_ints("Trilu", 1, shape=(3, 4), upper=0)),
    "DepthToSpace": (17, product("DepthToSpace", (1, 8, 2, 3), blocksize=2)),
    "DepthToSpace CRD": (17, product("DepthToSpace", (1, 8, 2, 3), blocksize=2, mode="CRD")),
    "SpaceToDepth": (17, product("SpaceToDepth", (1, 2, 4, 6), blocksize=2)),
    "Resize": (17, resized((1, 2, 3, 4), (1, 1, 2, 2), mode="nearest", nearest_mode="floor",
                           coordinate_transformation_mode="asymmetric")),
    "Resize linear": (17, resized((1, 2, 3, 4), sizes=(1, 2, 5, 7), mode="linear")),
    "Resize cubic": (17, resized((1, 2, 4, 4), sizes=(1, 2, 7, 8), mode="cubic", cubic_coeff_a=-0.75)),
    "Upsample": (9, lambda net: net.add("Upsample", net.input("x", (1, 2, 3, 4)),
                                        net.constant(np.asarray([1, 1, 2, 2], np.float32)), mode="nearest")),
    **{op: (17, shapes(op)) for op in ("Shape", "Size", "ConstantOfShape", "Range")},
    **{f"Reduce{kind}": (17, unary(f"Reduce{kind}", axes=[1], keepdims=0)) for kind in (
        "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")},
    "ReduceSum": (17, with_ints("ReduceSum", -1, 0)),
    "ReduceMean 18": (18, with_ints("ReduceMean", 2)),
    "ReduceSum all": (17, unary("ReduceSum", keepdims=1)),
}  # fmt: skip


def built(case: str) -> Model:
    opset, build = CASES[case]
    net = Net(opset=opset)
    model = net.model(build(net), infer=False)
    # Ranks differ from case to case; ONNX Runtime finds the shape by itself.
    model.proto.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def test_no_operator_is_left_out() -> None:
    used = {node.op_type for case in CASES for node in built(case).proto.graph.node}
    assert not set(OPS) - used


@pytest.mark.parametrize("case", CASES)
def test_equal_to_onnx_runtime(case: str) -> None:
    model = built(case)
    given = feeds(model)
    wanted = run(model, given)[0]
    network = Network(model).eval()
    with torch.no_grad():
        found = network(*(torch.from_numpy(given[name]) for name in network.inputs)).numpy()
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_differences(case: str, training: bool) -> None:
    """Of the input and of all weights, in float64."""
    model = built(case)
    network = Network(model).double().train(training)
    if "Dropout" in case and training:
        pytest.skip("dropout draws anew each time; its own test covers it")
    x = torch.from_numpy(feeds(model)["x"]).double().requires_grad_()
    weights = [weight.detach().clone().requires_grad_() for weight in network.weights]

    def function(data: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network(data, values=dict(zip(network.weight_names, values, strict=True)))
        return found

    assert torch.autograd.gradcheck(function, (x, *weights), eps=1e-6, atol=1e-5)
