"""A network of ResNet-50's shape with random weights, BatchNorm folded: for what depends on size alone.

python benchmarks/resnet50.py OUT.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Builder:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def tensor(self, shape: tuple[int, ...], gain: float) -> str:
        spread = gain * np.sqrt(2 / np.prod(shape[1:]))
        array = (self.rng.standard_normal(shape) * spread).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def conv(self, x: str, wide: int, out: int, k: int, stride: int = 1, gain: float = 1.0) -> str:
        weight = self.tensor((out, wide, k, k), gain)
        return self.add("Conv", [x, weight], pads=[k // 2] * 4, strides=[stride] * 2, kernel_shape=[k, k])

    def bottleneck(self, x: str, wide: int, inner: int, stride: int) -> str:
        y = self.add("Relu", [self.conv(x, wide, inner, 1)])
        y = self.add("Relu", [self.conv(y, inner, inner, 3, stride)])
        y = self.conv(y, inner, 4 * inner, 1, gain=0.3)  # so that sixteen sums do not run away
        if stride > 1 or wide != 4 * inner:
            x = self.conv(x, wide, 4 * inner, 1, stride)
        return self.add("Relu", [self.add("Add", [x, y])])


def resnet50() -> onnx.ModelProto:
    """25.5 million weights, 4.1 billion multiplications at 224 x 224; 54 layers."""
    net = Builder()
    y = net.add("Relu", [net.conv("x", 3, 64, 7, 2)])
    y = net.add("MaxPool", [y], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    wide = 64
    for inner, count, stride in STAGES:
        for index in range(count):
            y = net.bottleneck(y, wide, inner, stride if index == 0 else 1)
            wide = 4 * inner
    y = net.add("Flatten", [net.add("GlobalAveragePool", [y])])
    y = net.add("Gemm", [y, net.tensor((1000, wide), 1.0)], transB=1)
    graph = helper.make_graph(
        net.nodes,
        "resnet50",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 1000])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(resnet50(), sys.argv[1])
