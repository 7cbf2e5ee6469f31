"""Golden graphs: a model as canonical text, to be kept in a file and compared.

    opset: ai.onnx 17
    input x: float32[N,3,8,8]
    output y: float32[N,4,8,8] = %Relu0
    $0 = float32[4] #3f2a...                                  constants read more than once
    %Conv0: float32[N,4,8,8] = Conv(x, float32[4,3,3,3] #9c1e..., $0) {pads=[1, 1, 1, 1]}
    %Relu0: float32[N,4,8,8] = Relu(%Conv0)

The text says what a change of the model's meaning would change, and nothing else: not the names of nodes and
inner tensors, not their order in the file, not doc strings or metadata.

1. Nodes stand in the order of a depth-first walk from the outputs through the inputs, which depends on the
   structure alone. Nodes that no output needs follow, ordered by what they compute and by what reads them.
2. A tensor is named after its operator and counted per operator, so that a new node renames few others.
3. A constant of at most 8 elements is written out; of a larger one a digest is, of its values rounded to 6
   significant digits, so that goldens agree between CPUs.
4. Dtypes and shapes of inner tensors come from shape inference; a symbol that no input declares is `?`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from passes.core.base import Context, Pass
from passes.golden.order import Reads, canonical_order, nested_graphs
from passes.golden.values import attribute_text, tensor_text, type_text
from passes.graph.inference import infer_model, input_symbols
from passes.graph.model import Model

__all__ = ["GoldenMismatch", "canonical_text", "check_golden", "diff"]


class GoldenMismatch(AssertionError):  # noqa: N818 - says what was found, as pytest prints it
    """The model differs from its golden text; the message is the difference."""


@dataclass
class _Writer:
    """Writes one graph or function body; nested ones share the counters and see the names around them."""

    symbols: set[str]
    counters: Counter[str] = field(default_factory=Counter)
    names: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    reading: Reads = field(default_factory=Reads)

    def scope(self) -> _Writer:
        return _Writer(self.symbols, self.counters, dict(self.names), [], {}, self.reading)

    def node(self, node: onnx.NodeProto, constants: dict[str, str]) -> None:
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        results = []
        for name in node.output:
            if name:
                self.names[name] = f"%{node.op_type}{self.counters[operator]}"
                self.counters[operator] += 1
                results.append(self.names[name] + (f": {self.types[name]}" if name in self.types else ""))
            else:
                results.append("_")
        while results and results[-1] == "_":
            results.pop()
        read = [constants.get(name, self.names.get(name, name)) if name else "_" for name in node.input]
        while read and read[-1] == "_":
            read.pop()
        graphs = nested_graphs(node)
        nested = {name for name, _ in graphs}
        plain = sorted((a for a in node.attribute if a.name not in nested), key=lambda a: a.name)
        options = f" {{{', '.join(attribute_text(a, self.symbols) for a in plain)}}}" if plain else ""
        self.lines.append(f"{', '.join(results)} = {operator}({', '.join(read)}){options}")
        for name, graph in graphs:
            inner = self.scope()
            inner.names |= constants
            inner.graph(graph, nested=True)
            self.lines.append(f"  {name}:")
            self.lines.extend(f"    {line}" for line in inner.lines)

    def graph(self, graph: onnx.GraphProto, nested: bool = False) -> None:
        held = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {v.name: type_text(v.type, self.symbols) for v in (*graph.value_info, *graph.output)}
        for value in graph.input:
            if nested:
                self.names[value.name] = f"%in{self.counters['in']}"
                self.counters["in"] += 1
                self.lines.append(f"input {self.names[value.name]}: {type_text(value.type, self.symbols)}")
            elif value.name not in held:
                self.names[value.name] = value.name
                self.lines.append(f"input {value.name}: {type_text(value.type, self.symbols)}")
        at = len(self.lines)
        self.body(graph.node, [value.name for value in graph.output], held)
        outputs = []
        for value in graph.output:
            source = self.names.get(value.name) or tensor_text(held[value.name])
            label = "output" if nested else f"output {value.name}: {type_text(value.type, self.symbols)}"
            outputs.append(f"{label} = {source}")
        self.lines[at:at] = outputs

    def body(
        self, nodes: Sequence[onnx.NodeProto], outputs: list[str], held: dict[str, onnx.TensorProto]
    ) -> None:
        order = canonical_order(nodes, outputs, held, self.reading, self.names)
        uses = Counter(name for node in order for name in self.reading.of(node) if name in held)
        constants: dict[str, str] = {}
        for name in uses:  # in the order of their first use
            constants[name] = tensor_text(held[name])
            if uses[name] > 1:
                self.names[name] = f"${self.counters['$']}"
                self.counters["$"] += 1
                self.lines.append(f"{self.names[name]} = {constants[name]}")
                constants[name] = self.names[name]
        for node in order:
            self.node(node, constants)


def canonical_text(model: Model) -> str:
    """The model as canonical text; equal for models that differ in names and order only."""
    inferred, _ = infer_model(model.proto)
    graph = onnx.GraphProto()
    graph.CopyFrom(model.proto.graph)
    _take_types(graph, inferred)
    domains = {node.domain or "ai.onnx" for node in _every_node(graph)}
    for function in model.proto.functions:
        domains |= {node.domain or "ai.onnx" for node in function.node}
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.proto.opset_import}
    lines = [f"opset: {name} {versions[name]}" for name in sorted(domains & versions.keys())]
    writer = _Writer(input_symbols(graph))
    writer.graph(graph)
    lines += writer.lines
    for function in sorted(model.proto.functions, key=lambda f: (f.domain, f.name)):
        inner = _Writer(set())
        inner.names = {name: f"%in{index}" for index, name in enumerate(function.input)}
        inner.body(function.node, list(function.output), {})
        results = ", ".join(inner.names[name] for name in function.output)
        attributes = [*function.attribute, *(attribute_text(a) for a in function.attribute_proto)]
        heading = f"function {function.domain}::{function.name}({len(function.input)} inputs)"
        lines.append(f"{heading} -> {results} {{{', '.join(sorted(attributes))}}}")
        lines += [f"  {line}" for line in inner.lines]
    return "\n".join(lines) + "\n"


def _every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for _, nested in nested_graphs(node):
            yield from _every_node(nested)


def _take_types(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    """Replace declared types of inner tensors by inferred ones, nested graphs included."""
    del graph.value_info[:]
    graph.value_info.extend(inferred.value_info)
    for node, other in zip(graph.node, inferred.node, strict=True):
        for mine, theirs in zip(nested_graphs(node), nested_graphs(other), strict=True):
            _take_types(mine[1], theirs[1])


def diff(expected: str, actual: str) -> str:
    """The unified difference of two texts; empty where they are equal."""
    lines = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), "expected", "actual", n=2, lineterm=""
    )
    return "\n".join(lines)


def check_golden(
    recipe: Pass, model: Model, file: str | Path, update: bool = False, context: Context | None = None
) -> None:
    """Compare what `recipe` makes of `model` with the text in `file`; with `update`, write it instead.

    Raises GoldenMismatch (an AssertionError) with the difference, or when there is no such file.
    """
    path = Path(file)
    actual = canonical_text(recipe(model, context).model)
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual, encoding="utf-8")
        return
    if not path.is_file():
        raise GoldenMismatch(
            f"{path}: no such golden file; write it with update=True (pytest --update-golden)"
        )
    difference = diff(path.read_text(encoding="utf-8"), actual)
    if difference:
        raise GoldenMismatch(f"{path}: '{recipe}' makes another graph of {model.name}:\n{difference}")
