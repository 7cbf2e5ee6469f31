"""One way to store the weights of a format in a file: its bytes, its needs and what a session sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from passes.formats.encoded import EncodedWeight
from passes.formats.scheme import Scheme

__all__ = ["Form", "Geometry"]


@dataclass(frozen=True)
class Geometry:
    """A weight as rows: channels of `row_size` weights, in groups of `group` (the last may be short)."""

    channels: int
    row_size: int
    group: int

    @classmethod
    def of(cls, weights: int, channels: int, scheme: Scheme) -> Geometry:
        row_size = weights // channels
        return cls(channels, row_size, min(scheme.block_size or row_size, row_size))

    @property
    def weights(self) -> int:
        return self.channels * self.row_size

    @property
    def groups(self) -> int:
        """Of one row."""
        return -(-self.row_size // self.group)


class Form(ABC):
    """One way to store weights in a file.

    name: of the form. gives: what kernels see when a session is created from the file: float numbers, or
    `codes`, int8 or int16 with one scale per channel or tensor (or per block, which MatMulNBits reads).
    standard: whether it needs nothing but ONNX's own operators. half: whether scales are float16 where that
    is exact enough (passes/formats/scales.py).
    """

    name: str
    gives: Literal["float", "codes"]
    standard: bool
    half: bool

    @abstractmethod
    def opset(self, scheme: Scheme, dtype: Any = np.float32) -> int:
        """The least opset that can hold the form. dtype: the float type of the weight."""

    @abstractmethod
    def bits(self, scheme: Scheme) -> int:
        """Bits that one weight takes in the file."""

    @abstractmethod
    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        """Bytes of codes and scales, exactly. itemsize: of the float weight."""

    def extra_bytes(self, geometry: Geometry, scheme: Scheme) -> int:
        """Bytes that are added in the worst case: float32 scales, tables of unusual shapes."""
        return 0

    @abstractmethod
    def write(
        self,
        graph: gs.Graph,
        root: gs.Graph,
        hint: str,
        encoded: EncodedWeight,
        scheme: Scheme,
        dtype: Any,
        shield: bool = False,
    ) -> gs.Tensor:
        """Add initializers and nodes to `graph`; the tensor in the weight's shape and type that they give.

        root: the outermost graph, for unique names. dtype: the float type of the weight. shield: what
        `shields` says.
        """

    def row_scales(self, scheme: Scheme) -> bool:
        """Whether kernels may add an int32 bias in units of the weight's scales, one a channel or tensor."""
        return False

    def shields(self, op: str, index: int, rank: int, scheme: Scheme) -> bool:
        """Whether the weight, input `index` of a layer `op`, must be hidden from the runtime's fusions."""
        return False

    def shared(self, encoded: EncodedWeight, scheme: Scheme) -> EncodedWeight:
        """The weight as it is stored when several layers read it."""
        return encoded
