"""The canonical order of a graph's nodes (rule 1 of passes/golden/text.py): of structure, not names."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import onnx

from passes.golden.values import attribute_text, tensor_text

__all__ = ["Reads", "canonical_order", "nested_graphs"]


def nested_graphs(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """(attribute's name, graph) of the graphs in a node, by name."""
    found: list[tuple[str, onnx.GraphProto]] = []
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        found.extend((attribute.name, graph) for graph in graphs)
    return found


class Reads:
    """Tensors that nodes read, found once for each node; else a graph nested n deep is walked 2^n times."""

    def __init__(self) -> None:
        # The node is held beside its tensors: an id may be given again once its owner is gone.
        self._held: dict[int, tuple[onnx.NodeProto, tuple[str, ...]]] = {}

    def of(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """What a node reads, the graphs nested in it included, in an order of structure."""
        held = self._held.get(id(node))
        if held is None:
            held = self._held[id(node)] = (node, tuple(self._found(node)))
        return held[1]

    def _found(self, node: onnx.NodeProto) -> Iterator[str]:
        yield from (name for name in node.input if name)
        for _, graph in nested_graphs(node):
            held = {tensor.name: tensor for tensor in graph.initializer}
            outputs = [value.name for value in graph.output]
            order = canonical_order(graph.node, outputs, held, self)
            own = {name for inner in graph.node for name in inner.output} | set(held)
            own |= {value.name for value in graph.input}
            yield from (name for inner in order for name in self.of(inner) if name not in own)
            yield from (name for name in outputs if name not in own)


def _alone(
    node: onnx.NodeProto,
    read_tensors: tuple[str, ...],
    made: Container[str],
    held: dict[str, onnx.TensorProto],
    named: Mapping[str, str],
) -> str:
    """What a node says by itself, the tensors that other nodes of the graph make left open."""
    nested = {name for name, _ in nested_graphs(node)}
    plain = sorted((a for a in node.attribute if a.name not in nested), key=lambda a: a.name)
    read = [
        "*" if name in made else tensor_text(held[name]) if name in held else named.get(name, "?")
        for name in (*node.input, *read_tensors)
    ]
    return repr((node.domain, node.op_type, [attribute_text(a) for a in plain], read, len(node.output)))


def _colours(
    nodes: Sequence[onnx.NodeProto],
    ordered: Sequence[int],
    held: dict[str, onnx.TensorProto],
    reading: Reads,
    named: Mapping[str, str],
) -> dict[int, str]:
    """A digest for each node that is not in `ordered`: of all that tells it from others, but for names.

    By colour refinement (Weisfeiler and Leman): of itself, of what it reads and of what reads it, until no
    round tells more nodes apart.
    """
    makers = {
        name: (at, slot) for at, node in enumerate(nodes) for slot, name in enumerate(node.output) if name
    }
    reads = [
        [(name, place) for place, name in enumerate(reading.of(node)) if name in makers] for node in nodes
    ]
    readers: list[list[tuple[int, int, int]]] = [[] for _ in nodes]
    for at, entries in enumerate(reads):
        for name, place in entries:
            maker, slot = makers[name]
            readers[maker].append((at, slot, place))
    known = {at: f"ordered {place}" for place, at in enumerate(ordered)}
    colours = {
        at: _alone(node, reading.of(node), makers, held, named)
        for at, node in enumerate(nodes)
        if at not in known
    }
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


def canonical_order(
    nodes: Sequence[onnx.NodeProto],
    outputs: Iterable[str],
    held: dict[str, onnx.TensorProto],
    reading: Reads,
    named: Mapping[str, str] = MappingProxyType({}),
) -> list[onnx.NodeProto]:
    """Nodes in canonical order (rule 1), each after those that it reads from.

    reading: what nodes read, shared by everything that is written of one model.
    named: canonical names of tensors from outside, as far as they are known.
    """
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    reads = [[makers[name] for name in reading.of(node) if name in makers] for node in nodes]
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
        colours = _colours(nodes, order, held, reading, named)
        needed = {index for reader in dead for index in reads[reader]}
        for index in sorted((at for at in dead if at not in needed), key=lambda at: colours[at]):
            visit(index)
    return [nodes[index] for index in order]
