"""Feeds that a model may accept: of a user's data, else made up, with sizes tried in turn for what is free.

A model tells which sizes its free dimensions may have only by failing at others: a convolution wants its
window, a reflecting Pad more than its margin, a decoder the same length in two inputs. So feeds are proposed
from small to large, and whoever asks runs them until one is accepted.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxq.data import Dataset, InputSpec, fit_batch, input_specs
from passes.graph.model import Model, every_graph

__all__ = ["Feed", "Proposal", "feeds_of", "made_up_feed", "proposed_feeds", "stacked"]

Feed = dict[str, npt.NDArray[Any]]

# Samples of a dataset that are run, and those that are looked through for one of another shape.
_SAMPLES = 8
_SEARCHED = 64
# No made-up feed holds more numbers than this.
_MOST_NUMBERS = 2**26
_SMALL = (1, 2, 3, 4, 5, 7, 8)
_LARGE = (16, 32, 64, 96, 128, 192, 224, 256, 320, 384, 416, 512, 640)
# A second made-up feed has at least this size in its free dimensions.
_TELLING_SIZE = 16
# The dimensions behind the batch and the channels of an image.
_IMAGE_RANK = 4
_SAMPLING_RATE = 16_000


def feeds_of(dataset: Dataset, inputs: list[InputSpec]) -> Iterator[Feed]:
    """The first samples one by one, then one of another shape where there is one among the next."""
    first: list[tuple[int, ...]] = []
    for number, batch in enumerate(dataset.batches(fit_batch(1, inputs), 0, min(len(dataset), _SEARCHED))):
        shapes = [array.shape for array in batch.inputs.values()]
        first = first or shapes
        if number < _SAMPLES:
            yield batch.inputs
        elif shapes != first:
            yield batch.inputs
            return


@dataclass(frozen=True)
class _Sizes:
    """Sizes of free dimensions. batch: of the symbols and places of the batch. image: of an image's height
    and width. other: of all else. lengths: the value of integer inputs of rank 0 or 1, which are often
    sizes; None draws 0 or 1. alone: the one input whose nameless dimensions have these sizes, those of the
    others being 1, as of a signal beside a recurrent state [2, ?, 128]; None: every input."""

    batch: int
    image: int
    other: int
    lengths: int | None = None
    alone: str | None = None

    def of(self, spec: InputSpec, symbols: frozenset[str]) -> tuple[int, ...]:
        """The shape of one input. symbols: those of the batch."""
        image = len(spec.shape) == _IMAGE_RANK and spec.dtype.kind == "f"
        shape = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int) and dim > 0:
                shape.append(dim)
            elif (axis == 0 and not isinstance(dim, str)) or (isinstance(dim, str) and dim in symbols):
                shape.append(self.batch)
            else:
                plain = self.image if image and axis > 1 else self.other
                if dim is None and self.alone not in (None, spec.name):
                    plain = 1
                shape.append(_worked_out(dim, plain, self.batch, symbols) if isinstance(dim, str) else plain)
        return tuple(shape)


def _worked_out(text: str, size: int, batch: int, symbols: frozenset[str]) -> int:
    """A symbolic dimension such as `past_length + length`, every symbol in it of the same size."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return size

    def value(node: ast.expr) -> int | None:
        if isinstance(node, ast.Name):
            return batch if node.id in symbols else size
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if left is None or right is None:
                return None
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            if isinstance(node.op, ast.Mult):
                return left * right
            if isinstance(node.op, ast.FloorDiv) and right:
                return left // right
        return None

    found = value(tree)
    return size if found is None or not 0 <= found <= _MOST_NUMBERS else found


def _batch_symbols(specs: list[InputSpec]) -> frozenset[str]:
    """The symbols that stand on the first axis of an input of rank 2 or more, or are called a batch."""
    named = {dim for spec in specs for dim in spec.shape if isinstance(dim, str) and "batch" in dim.lower()}
    if named:
        return frozenset(named)
    first = (spec.shape[0] for spec in specs if len(spec.shape) > 1)
    return frozenset(dim for dim in first if isinstance(dim, str))


def _can_be_drawn(spec: InputSpec, sizes: _Sizes) -> bool:
    """Whether values of the input's type can be made up, and a length among them fits it."""
    if spec.dtype.kind in "iu" and len(spec.shape) < 2 and sizes.lengths is not None:
        return bool(sizes.lengths <= np.iinfo(spec.dtype).max)
    return spec.dtype.kind in "fbiuOSU" or spec.dtype.name == "bfloat16"


def _drawn(shape: tuple[int, ...], dtype: np.dtype[Any], sizes: _Sizes, seed: int) -> npt.NDArray[Any]:
    """Standard normal floats, integers of 0 and 1, or a length."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype.kind in "iu" and len(shape) < 2 and sizes.lengths is not None:
        return np.full(shape, sizes.lengths, dtype)
    if dtype.kind in "biu":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    return np.full(shape, "a", dtype=object)


def _proposal(specs: list[InputSpec], sizes: _Sizes, seed: int) -> Proposal | None:
    """A feed of these sizes; None where a type cannot be made up or the numbers are too many."""
    symbols = _batch_symbols(specs)
    shapes = tuple(sizes.of(spec, symbols) for spec in specs)
    if sum(map(math.prod, shapes)) > _MOST_NUMBERS or not all(_can_be_drawn(spec, sizes) for spec in specs):
        return None
    return Proposal(tuple(specs), shapes, sizes, seed)


def _described(model: Model) -> list[InputSpec] | None:
    """The model's inputs, None where one is no tensor or has no rank."""
    constants = {tensor.name for tensor in model.proto.graph.initializer}
    for value in model.proto.graph.input:
        if value.name not in constants and not value.type.tensor_type.HasField("shape"):
            return None
    return input_specs(model.proto)


def made_up_feed(model: Model, batch: int = 1, seed: int = 0) -> Feed | None:
    """One feed for the model: `batch` in place of a free first dimension, 1 in place of the other free ones.

    None when an input has no tensor shape or a type that cannot be made up.
    """
    specs = _described(model)
    if specs is None:
        return None
    proposal = _proposal([_anonymous(spec) for spec in specs], _Sizes(batch, 1, 1), seed)
    return proposal.feed if proposal else None


def _anonymous(spec: InputSpec) -> InputSpec:
    """The input with nameless free dimensions, so that its first axis is the batch."""
    return InputSpec(spec.name, spec.dtype, tuple(d if isinstance(d, int) else None for d in spec.shape))


def _attributes(graphs: list[onnx.GraphProto], name: str) -> Iterator[int]:
    for graph in graphs:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == name and attribute.type == onnx.AttributeProto.INTS:
                    yield from attribute.ints


def _multiples(model: Model) -> list[int]:
    """Sizes that the windows and strides of the model suggest."""
    graphs = list(every_graph(model.proto.graph))
    window = max(_attributes(graphs, "kernel_shape"), default=1)
    stride = 1
    for graph in graphs:
        for node in graph.node:
            strides = max((a.ints[0] for a in node.attribute if a.name == "strides" and a.ints), default=1)
            stride = stride * strides if 0 < stride * strides <= max(_LARGE) else stride
    found = {window, 2 * window, stride, 2 * stride, 3 * stride, 7 * stride}
    return sorted(size for size in found if 1 < size <= max(_LARGE))


@dataclass(frozen=True)
class Proposal:
    """A made-up feed, drawn when first asked for, and the sizes of its free dimensions."""

    specs: tuple[InputSpec, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: _Sizes
    seed: int
    above_zero: bool = False

    @cached_property
    def feed(self) -> Feed:
        drawn = {
            spec.name: _drawn(shape, spec.dtype, self.sizes, self.seed + number)
            for number, (spec, shape) in enumerate(zip(self.specs, self.shapes, strict=True))
        }
        if not self.above_zero:
            return drawn
        return {name: np.abs(array) if array.dtype.kind == "f" else array for name, array in drawn.items()}

    def is_larger(self, other: Proposal) -> bool:
        """Whether the free dimensions, the batch aside, are large enough to show what `other` does not."""
        size, first = (max(each.image, each.other) for each in (self.sizes, other.sizes))
        return self.sizes.batch == other.sizes.batch and size >= max(2 * first, _TELLING_SIZE)

    def positive(self) -> Proposal:
        """The same with floats above 0, for models that take a logarithm or a root."""
        return replace(self, above_zero=True)

    def of_other_batch(self) -> Proposal | None:
        """The same sizes with another batch; None where the batch is not free."""
        made = _proposal(
            list(self.specs), replace(self.sizes, batch=1 if self.sizes.batch == 2 else 2), self.seed
        )
        if made is None or made.shapes == self.shapes:
            return None
        return replace(made, above_zero=self.above_zero)


def proposed_feeds(model: Model, seed: int = 0) -> Iterator[Proposal]:
    """Feeds to try, the likeliest to be accepted first; nothing where none can be made.

    The declared sizes are kept. Free ones are tried at 1 and 2, at multiples of the model's windows and
    strides, and from 16 to 640; the batch at 1, then at 2 and at the same size as all else; at last those of
    one input alone.
    """
    specs = _described(model)
    if specs is None:
        return
    sizes = list(dict.fromkeys((*_SMALL[:2], *_multiples(model), *_LARGE, *_SMALL[2:])))
    tried = [_Sizes(1, size, size) for size in sizes]
    tried += [_Sizes(1, image, other) for image in (32, 64, 224) for other in (1, 2, 8)]
    tried += [_Sizes(2, size, size) for size in sizes] + [_Sizes(size, size, size) for size in (8, 16)]
    nameless = [spec.name for spec in specs if None in spec.shape[1:]]
    if len(nameless) > 1:
        tried += [_Sizes(1, size, size, alone=name) for name in nameless for size in sizes]
    if any(spec.dtype.kind in "iu" and len(spec.shape) < 2 for spec in specs):
        rest = [each for each in tried if each.batch == 1]
        tried += [replace(e, lengths=value) for e in rest for value in (e.other, 1, _SAMPLING_RATE)]
    seen: set[tuple[int | None, tuple[tuple[int, ...], ...]]] = set()
    for each in tried:
        proposal = _proposal(specs, each, seed)
        if proposal is not None and (each.lengths, proposal.shapes) not in seen:
            seen.add((each.lengths, proposal.shapes))
            yield proposal


def stacked(feeds: Sequence[Feed], inputs: list[InputSpec]) -> Feed | None:
    """The first two samples as one feed; None where the model's batch is not free or their shapes differ."""
    one, other = (feeds[0], feeds[1]) if len(feeds) > 1 else ({}, {})
    free = all(spec.shape and not (isinstance(spec.shape[0], int) and spec.shape[0] > 0) for spec in inputs)
    if not one or not free or any(one[name].shape != other[name].shape for name in one):
        return None
    return {name: np.concatenate([one[name], other[name]]) for name in one}
