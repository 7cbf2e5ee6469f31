"""Small networks for tests of quantization, built node by node, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxq.data.dataset import Batch, group
from passes.core.base import Context, Pass, PassResult, RangeProvider
from passes.graph.model import Model, check, serialize

Array = npt.NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT


class Net:
    """Nodes and weights of one graph. Every method that adds a node returns the name of its output."""

    def __init__(
        self, *, opset: int = 17, seed: int = 0, named: bool = True, dtype: Any = np.float32
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.named, self.dtype = opset, named, np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    @property
    def element(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def input(self, name: str, shape: Sequence[int | str], element: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, element or self.element, shape))
        return name

    def constant(self, array: Array, name: str = "") -> str:
        label = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), label))
        return label

    def weight(self, *shape: int, name: str = "", gain: float = 1.0) -> str:
        fan = max(int(np.prod(shape[1:])), 1)
        array = self.rng.normal(0, gain / np.sqrt(fan), shape).astype(self.dtype)
        return self.constant(array, name)

    def add(self, op: str, *inputs: str, name: str = "", outputs: Sequence[str] = (), **attrs: Any) -> str:
        label = name or f"{op.lower()}{len(self.nodes)}"
        made = list(outputs) or [f"{label}_out"]
        self.nodes.append(helper.make_node(op, list(inputs), made, label if self.named else "", **attrs))
        return made[0]

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        k: int = 3,
        *,
        groups: int = 1,
        bias: bool = True,
        stride: int = 1,
        name: str = "",
        act: str = "",
    ) -> str:
        inputs = [x, self.weight(cout, cin // groups, k, k)]
        if bias:
            inputs.append(self.constant(self.rng.normal(0, 0.1, cout).astype(self.dtype)))
        pad = k // 2
        y = self.add("Conv", *inputs, name=name, group=groups, pads=[pad] * 4, strides=[stride] * 2)
        return self.activation(y, act)

    def activation(self, y: str, act: str) -> str:
        if act == "relu":
            return self.add("Relu", y)
        if act == "relu6":
            return self.add("Clip", y, self.scalar(0), self.scalar(6))
        return y

    def scalar(self, value: float) -> str:
        return self.constant(np.asarray(value, self.dtype))

    def model(self, *outputs: str, infer: bool = True, element: int | None = None) -> Model:
        shape = None if infer else ["a", "b", "c", "d"]
        declared = [helper.make_tensor_value_info(name, element or self.element, shape) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, declared, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        ir = max(helper.find_min_ir_version_for(opsets), 8)
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="test")
        if infer:
            proto = onnx.shape_inference.infer_shapes(proto)
        model = Model(proto, "net.onnx")
        if infer:
            check(model)
        return model


def feeds(model: Model, batch: int = 4, seed: int = 1) -> dict[str, Array]:
    """Normal random inputs, unknown dimensions taken as `batch`."""
    rng = np.random.default_rng(seed)
    known = {tensor.name for tensor in model.proto.graph.initializer}
    made: dict[str, Array] = {}
    for value in model.proto.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else batch for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        made[value.name] = np.asarray(
            rng.normal(0, 1, shape) if dtype.kind == "f" else np.ones(shape)
        ).astype(dtype)
    return made


def session(model: Model, *, optimise: bool = True, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Without it, sums of uint8 x int8 products saturate on CPUs without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])


def run(model: Model, inputs: Mapping[str, Array] | None = None, *, optimise: bool = True) -> list[Array]:
    made = session(model, optimise=optimise).run(None, dict(inputs if inputs is not None else feeds(model)))
    return [np.asarray(array) for array in made]


def tensors(model: Model, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Values of inner tensors."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    have = {value.name for value in proto.graph.output}
    given = {name: array for name, array in inputs.items() if name in names}
    asked = [name for name in names if name not in given]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in have)
    found = session(Model(proto), optimise=False).run(asked, dict(inputs)) if asked else []
    return given | dict(zip(asked, found, strict=True))


def ranges_of(inputs: Mapping[str, Array]) -> RangeProvider:
    """A provider of min-max ranges over one batch."""

    def provide(model: Model, wanted: Sequence[tuple[str, int]]) -> Mapping[str, tuple[float, float]]:
        found = tensors(model, [name for name, _ in wanted], inputs)
        return {name: (float(array.min()), float(array.max())) for name, array in found.items()}

    return provide


def apply(step: Pass, model: Model, inputs: Mapping[str, Array] | None = None) -> PassResult:
    """The pass with min-max ranges of `inputs` (random ones by default)."""
    return step(model, Context(ranges=ranges_of(inputs if inputs is not None else feeds(model))))


def optimized_ops(model: Model, folder: Path) -> dict[str, int]:
    """Counts of the operators in ONNX Runtime's optimised graph."""
    target = folder / "optimized.onnx"
    session(model, optimized=target)
    counts: dict[str, int] = {}
    for node in onnx.load(target).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def sqnr(reference: Array, value: Array) -> float:
    """Signal to noise in dB."""
    noise = float(np.square(reference.astype(np.float64) - value).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


class Samples:
    """A dataset over one array of samples, as the evaluator reads it."""

    def __init__(self, name: str, array: Array, labels: Sequence[int] | None = None) -> None:
        self.input, self.array, self.labels = name, array, labels
        self.name = "samples"

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.array)

    def fingerprint(self) -> str:
        return "samples"

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        labels = [None] * len(self.array) if self.labels is None else list(self.labels)
        rows = [({self.input: row}, label) for row, label in zip(self.array, labels, strict=True)]
        return group(rows[start:stop], size)

    def subset(self, indices: Sequence[int]) -> Samples:
        labels = None if self.labels is None else [self.labels[index] for index in indices]
        return Samples(self.input, self.array[list(indices)], labels)
