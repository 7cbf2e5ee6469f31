"""ONNX Runtime's per-node profile, told in the model's own node names.

ONNX Runtime fuses and renames: a Conv in its NCHWc layout is called after the tensor that it writes
(`relu_out_nchwc`), an integer one after the node with a counter (`conv1_token_4`). A kernel is therefore
looked up first as a node's name and then as a tensor's, and from there the walk goes back to the operator
that was fused. Kernel times serve to find where time goes, not to decide: under load their sum is not the
run time.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx

from passes.graph.model import Model

__all__ = ["NodeTime", "Placement", "read_profile"]

_SUFFIX = re.compile(r"(_nchwc|_quant|_nhwc|_token_\d+|_kernel_time)$")
# What a fused operator begins with; behind it in the chain stand BatchNormalization, Add, Mul and
# activations.
_HEADS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger")
_FUSED = {
    "QLinearConv": "Conv",
    "FusedConv": "Conv",
    "ConvInteger": "ConvInteger",
    "QGemm": "Gemm",
    "FusedGemm": "Gemm",
    "QLinearMatMul": "MatMul",
    "FusedMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMulInteger",
    "DynamicQuantizeMatMul": "MatMulInteger",
}


@dataclass(frozen=True)
class NodeTime:
    """One kernel of a profile.

    Attributes:
        node: the model's own node, or the kernel's name in brackets where ONNX Runtime made it up.
        op: the operator that ran.
        provider: the execution provider that it ran on.
        milliseconds: median over the profiled runs.
    """

    node: str
    op: str
    provider: str
    milliseconds: float


@dataclass(frozen=True)
class Placement:
    """Where the nodes of a model ran, from one profile."""

    times: tuple[NodeTime, ...]

    def on(self, provider: str) -> list[NodeTime]:
        return [time for time in self.times if time.provider == provider]

    @property
    def unfused(self) -> list[NodeTime]:
        """Q/DQ kernels that ran by themselves; the model's inputs and outputs need some."""
        return [time for time in self.times if time.op in ("QuantizeLinear", "DequantizeLinear")]

    def counts(self) -> Mapping[str, int]:
        """Kernels per execution provider."""
        return Counter(time.provider for time in self.times)


def read_profile(path: Path, model: Model) -> Placement:
    """The kernels of a profile file, in the order of their first run, times are medians over the runs.

    Raises:
        ValueError: the file is no profile.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    found: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        arguments = event["args"]
        kernel = (event["name"], arguments["op_name"], arguments["provider"])
        found.setdefault(kernel, []).append(event["dur"] / 1e3)
    names = _Names.of(model.proto)
    return Placement(
        tuple(
            NodeTime(names.own(name, op), op, provider, median(times))
            for (name, op, provider), times in found.items()
        )
    )


@dataclass(frozen=True)
class _Names:
    nodes: Mapping[str, onnx.NodeProto]
    makers: Mapping[str, onnx.NodeProto]

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> _Names:
        nodes = {node.name: node for node in proto.graph.node if node.name}
        makers = {name: node for node in proto.graph.node for name in node.output if name}
        return cls(nodes, makers)

    def own(self, kernel: str, op: str) -> str:
        """The model's node behind a kernel; the kernel's name in brackets where there is none."""
        for name in _shorter(kernel):
            node = self.nodes.get(name) or self.makers.get(name)
            if node is not None:
                return self._head(node, op)
        return f"[{_shorter(kernel)[-1]}]"

    def _head(self, node: onnx.NodeProto, op: str) -> str:
        """The operator at the beginning of what was fused into `op` and ends in `node`."""
        wanted = _FUSED.get(op, op)
        current: onnx.NodeProto | None = node
        while current is not None and wanted in _HEADS and current.op_type != wanted:
            current = next((self.makers[name] for name in current.input if name in self.makers), None)
        chosen = node if current is None else current
        return chosen.name or chosen.output[0]


def _shorter(kernel: str) -> Sequence[str]:
    """The kernel's name with ever more of ONNX Runtime's suffixes taken off."""
    names = [kernel]
    while (name := _SUFFIX.sub("", names[-1])) != names[-1]:
        names.append(name)
    return names
