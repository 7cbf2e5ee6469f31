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
   structure alone. Nodes that no output needs follow, ordered by what they compute.
2. A tensor is named after its operator and counted per operator, so that a new node renames few others.
3. A constant of at most 8 elements is written out; of a larger one a digest is, of its values rounded to 6
   significant digits, so that goldens agree between CPUs.
4. Dtypes and shapes of inner tensors come from shape inference; a symbol that no input declares is `?`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from passes.base import Context, Pass
from passes.inference import infer_model, input_symbols
from passes.model import Model

__all__ = ["GoldenMismatch", "canonical_text", "check_golden", "diff"]

_WRITTEN_OUT = 8
_DIGITS = 6


class GoldenMismatch(AssertionError):  # noqa: N818 - says what was found, as pytest prints it
    """The model differs from its golden text; the message is the difference."""


def _dtype(number: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _rounded(array: npt.NDArray[Any]) -> bytes:
    """Bytes of the values at 6 significant digits, the same for all but few neighbouring floats."""
    x = array.astype(np.float64).reshape(-1)
    usual = np.isfinite(x) & (x != 0)
    safe = np.where(usual, x, 1.0)
    exponent = np.floor(np.log10(np.abs(safe))).astype(np.int64)
    # In two steps, as 10 to the power of (5 - exponent) overflows for subnormal numbers.
    scaled = np.rint(safe / 10.0**exponent * 10.0 ** (_DIGITS - 1)).astype(np.int64)
    carried = np.abs(scaled) == 10**_DIGITS
    scaled, exponent = np.where(carried, scaled // 10, scaled), exponent + carried
    # Zero is zero whatever its sign; NaN and the infinities have no digits.
    code = np.where(np.isnan(x), 1, np.where(x == np.inf, 2, np.where(x == -np.inf, 3, 0)))
    exponent, scaled = np.where(usual, exponent, 0), np.where(usual, scaled, code)
    return bytes(np.stack([scaled, exponent, code]).astype("<i8").tobytes())


def _number(value: Any) -> str:
    """Shortest text of a number at 6 significant digits; integers, booleans and strings as they are."""
    if isinstance(value, float | np.floating):
        return f"{float(value) + 0.0:.{_DIGITS}g}"
    if isinstance(value, bytes):
        return repr(value.decode("utf-8", "backslashreplace"))
    return repr(value) if isinstance(value, str) else str(value).lower()


def _tensor(tensor: onnx.TensorProto) -> str:
    kind = f"{_dtype(tensor.data_type)}[{','.join(map(str, tensor.dims))}]"
    array = numpy_helper.to_array(tensor)
    if array.dtype.name == "bfloat16" or array.dtype.name.startswith("float8"):
        array = array.astype(np.float32)
    elif array.dtype.name.lstrip("u") in ("int4", "int2"):
        array = array.astype(np.int8)
    if array.size <= _WRITTEN_OUT:
        return f"{kind} {{{', '.join(_number(item) for item in array.reshape(-1).tolist())}}}"
    if array.dtype.kind == "f":
        content = _rounded(array)
    elif array.dtype.kind in "OSU":
        content = "\0".join(map(str, array.reshape(-1).tolist())).encode()
    else:
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return f"{kind} #{hashlib.sha256(content).hexdigest()[:12]}"


def _type(value: onnx.TypeProto, symbols: set[str]) -> str:
    kind = value.WhichOneof("value")
    if kind == "tensor_type":
        tensor = value.tensor_type
        if not tensor.elem_type:
            return "?"
        if not tensor.HasField("shape"):
            return f"{_dtype(tensor.elem_type)}[*]"
        dims = [
            str(dim.dim_value)
            if dim.HasField("dim_value")
            else dim.dim_param
            if dim.dim_param in symbols
            else "?"
            for dim in tensor.shape.dim
        ]
        return f"{_dtype(tensor.elem_type)}[{','.join(dims)}]"
    if kind in ("sequence_type", "optional_type"):
        return f"{kind.split('_')[0]}({_type(getattr(value, kind).elem_type, symbols)})"
    return "?" if kind is None else kind


def _nested(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    found: list[tuple[str, onnx.GraphProto]] = []
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        found.extend((attribute.name, graph) for graph in graphs)
    return found


@dataclass
class _Writer:
    """Writes one graph or function body; nested ones share the counters and see the names around them."""

    symbols: set[str]
    counters: Counter[str] = field(default_factory=Counter)
    names: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)

    def scope(self) -> _Writer:
        return _Writer(self.symbols, self.counters, dict(self.names), [], {})

    def attribute(self, attribute: onnx.AttributeProto) -> str:
        if attribute.ref_attr_name:
            return f"{attribute.name}=@{attribute.ref_attr_name}"
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            return f"{attribute.name}={_tensor(value)}"
        if isinstance(value, onnx.TypeProto):
            return f"{attribute.name}={_type(value, self.symbols)}"
        if isinstance(value, float):
            return f"{attribute.name}={_number(np.float32(value))}"
        if isinstance(value, int | bytes):
            return f"{attribute.name}={_number(value)}"
        items = [np.float32(item) if isinstance(item, float) else item for item in value]
        written = [_tensor(item) if isinstance(item, onnx.TensorProto) else _number(item) for item in items]
        return f"{attribute.name}=[{', '.join(written)}]"

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
        graphs = _nested(node)
        nested = {name for name, _ in graphs}
        plain = sorted((a for a in node.attribute if a.name not in nested), key=lambda a: a.name)
        options = f" {{{', '.join(self.attribute(a) for a in plain)}}}" if plain else ""
        self.lines.append(f"{', '.join(results)} = {operator}({', '.join(read)}){options}")
        for name, graph in graphs:
            inner = self.scope()
            inner.names |= constants
            inner.graph(graph, nested=True)
            self.lines.append(f"  {name}:")
            self.lines.extend(f"    {line}" for line in inner.lines)

    def graph(self, graph: onnx.GraphProto, nested: bool = False) -> None:
        held = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {v.name: _type(v.type, self.symbols) for v in (*graph.value_info, *graph.output)}
        for value in graph.input:
            if nested:
                self.names[value.name] = f"%in{self.counters['in']}"
                self.counters["in"] += 1
                self.lines.append(f"input {self.names[value.name]}: {_type(value.type, self.symbols)}")
            elif value.name not in held:
                self.names[value.name] = value.name
                self.lines.append(f"input {value.name}: {_type(value.type, self.symbols)}")
        at = len(self.lines)
        self.body(graph.node, [value.name for value in graph.output], held)
        outputs = []
        for value in graph.output:
            source = self.names.get(value.name) or _tensor(held[value.name])
            label = "output" if nested else f"output {value.name}: {_type(value.type, self.symbols)}"
            outputs.append(f"{label} = {source}")
        self.lines[at:at] = outputs

    def body(
        self, nodes: Sequence[onnx.NodeProto], outputs: list[str], held: dict[str, onnx.TensorProto]
    ) -> None:
        order = _walk(nodes, outputs, held, self.names)
        uses = Counter(name for node in order for name in _reads(node) if name in held)
        used = [name for name in dict.fromkeys(n for node in order for n in _reads(node)) if name in held]
        constants: dict[str, str] = {}
        for name in used:
            constants[name] = _tensor(held[name])
            if uses[name] > 1:
                self.names[name] = f"${self.counters['$']}"
                self.counters["$"] += 1
                self.lines.append(f"{self.names[name]} = {constants[name]}")
                constants[name] = self.names[name]
        for node in order:
            self.node(node, constants)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads, those of the graphs nested in it included, in an order of structure."""
    yield from (name for name in node.input if name)
    for _, graph in _nested(node):
        held = {tensor.name: tensor for tensor in graph.initializer}
        outputs = [value.name for value in graph.output]
        order = _walk(graph.node, outputs, held)
        own = {name for inner in graph.node for name in inner.output} | set(held)
        own |= {value.name for value in graph.input}
        yield from (name for inner in order for name in _reads(inner) if name not in own)
        yield from (name for name in outputs if name not in own)


def _alone(
    node: onnx.NodeProto, made: Container[str], held: dict[str, onnx.TensorProto], named: Mapping[str, str]
) -> str:
    """What a node says by itself, the tensors that other nodes of the graph make left open."""
    writer = _Writer(set())
    plain = sorted((a for a in node.attribute if not a.HasField("g")), key=lambda a: a.name)
    read = [
        "*" if name in made else _tensor(held[name]) if name in held else named.get(name, "?")
        for name in (*node.input, *_reads(node))
    ]
    return repr((node.domain, node.op_type, [writer.attribute(a) for a in plain], read, len(node.output)))


def _colours(
    nodes: Sequence[onnx.NodeProto],
    ordered: Sequence[int],
    held: dict[str, onnx.TensorProto],
    named: Mapping[str, str],
) -> dict[int, str]:
    """A digest for each node that is not in `ordered`: of all that tells it from others, but for names.

    By colour refinement (Weisfeiler and Leman): of itself, of what it reads and of what reads it, until no
    round tells more nodes apart.
    """
    makers = {
        name: (at, slot) for at, node in enumerate(nodes) for slot, name in enumerate(node.output) if name
    }
    reads = [[(name, place) for place, name in enumerate(_reads(node)) if name in makers] for node in nodes]
    readers: list[list[tuple[int, int, int]]] = [[] for _ in nodes]
    for at, entries in enumerate(reads):
        for name, place in entries:
            maker, slot = makers[name]
            readers[maker].append((at, slot, place))
    known = {at: f"ordered {place}" for place, at in enumerate(ordered)}
    colours = {at: _alone(node, makers, held, named) for at, node in enumerate(nodes) if at not in known}
    while True:
        every = colours | known
        told = {
            at: (
                colour,
                [(every[makers[name][0]], makers[name][1], place) for name, place in reads[at]],
                sorted((every[reader], slot, place) for reader, slot, place in readers[at]),
            )
            for at, colour in colours.items()
        }
        finer = {at: hashlib.sha256(repr(entry).encode()).hexdigest() for at, entry in told.items()}
        if len(set(finer.values())) == len(set(colours.values())):
            return finer
        colours = finer


def _walk(
    nodes: Sequence[onnx.NodeProto],
    outputs: Iterable[str],
    held: dict[str, onnx.TensorProto],
    named: Mapping[str, str] = MappingProxyType({}),
) -> list[onnx.NodeProto]:
    """Nodes in canonical order (rule 1), each after those that it reads from.

    named: canonical names of tensors from outside, as far as they are known.
    """
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    reads = [[makers[name] for name in _reads(node) if name in makers] for node in nodes]
    order: list[int] = []
    done: set[int] = set()

    def visit(root: int) -> None:
        stack = [(root, iter(reads[root]))]
        done.add(root)
        while stack:
            index, rest = stack[-1]
            following = next((i for i in rest if i not in done), None)
            if following is None:
                order.append(index)
                stack.pop()
            else:
                done.add(following)
                stack.append((following, iter(reads[following])))

    for name in outputs:
        if name in makers and makers[name] not in done:
            visit(makers[name])
    dead = [index for index in range(len(nodes)) if index not in done]
    if dead:
        colours = _colours(nodes, order, held, named)
        needed = {index for reader in dead for index in reads[reader]}
        for index in sorted((at for at in dead if at not in needed), key=lambda at: colours[at]):
            visit(index)
    return [nodes[index] for index in order]


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
        attributes = [*function.attribute, *(inner.attribute(a) for a in function.attribute_proto)]
        heading = f"function {function.domain}::{function.name}({len(function.input)} inputs)"
        lines.append(f"{heading} -> {results} {{{', '.join(sorted(attributes))}}}")
        lines += [f"  {line}" for line in inner.lines]
    return "\n".join(lines) + "\n"


def _every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for _, nested in _nested(node):
            yield from _every_node(nested)


def _take_types(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    """Replace declared types of inner tensors by inferred ones, nested graphs included."""
    del graph.value_info[:]
    graph.value_info.extend(inferred.value_info)
    for node, other in zip(graph.node, inferred.node, strict=True):
        for mine, theirs in zip(_nested(node), _nested(other), strict=True):
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
