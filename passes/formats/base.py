"""The interface of a weight format, and of the forms in which its weights are stored in a file.

A format is one object in the table of passes/formats/__init__.py. It knows how its schemes are written as
text (passes/formats/scheme.py), how weights become codes and back (the numpy reference), on which grid
rounding by data may choose, in which forms a weight can be stored, and what each form takes and gives.
Everything else asks the object; nothing else asks which format it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from passes.core.errors import PolicyError, UnsupportedModelError
from passes.formats.encoded import EncodedWeight
from passes.formats.form import Form
from passes.formats.scheme import GRAMMARS, Grammar, Scheme
from passes.rounding.learned import Learning
from passes.rounding.second_order import Grid, Rounded, round_rows

__all__ = ["RowGrid", "RowTask", "Simulation", "Stream", "WeightFormat", "finite", "format_of"]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
# H and its upper factor (passes/rounding/second_order.py).
Metric = tuple[Float, Float]


@dataclass(frozen=True)
class Stream:
    """An operator of `ai.onnxq` that makes float weights of bytes in the file.

    op: its name. decode: (arrays of its inputs, attributes, shape, room for the result) -> the weight, as the
    function in the file computes it. reads: the element type of each input that `decode` needs; "scale" is
    float16 or float32. text: (attributes, shape, arrays) -> the scheme. function: opset -> its function.
    """

    op: str
    reads: tuple[str, ...]
    decode: Callable[[Sequence[Array], Mapping[str, int], Sequence[int], Array | None], Array]
    text: Callable[[Mapping[str, int], Sequence[int], Callable[[int], Array | None]], str]
    function: Callable[[int], onnx.FunctionProto]


@dataclass(frozen=True)
class Simulation:
    """An operator of `ai.onnxq` that rounds activations at run time.

    attributes: (scheme, shape [rows, channels, positions] in which it sees its input) -> of the node. text:
    attributes -> the scheme.
    """

    op: str
    attributes: Callable[[Scheme, list[int]], dict[str, Any]]
    text: Callable[[Mapping[str, int]], str]


@dataclass(frozen=True)
class RowTask:
    """W1 [N, M, K] to round. array: the weight, for its shape and type. axis: of its output channels.

    floor: least scale by channel. half: float16 scales if they fit.
    """

    array: Array
    axis: int
    scheme: Scheme
    target: Float
    floor: npt.NDArray[np.float32] | None = None
    half: bool = False

    @property
    def wanted(self) -> Array:
        """W1 in the shape and type of the weight."""
        moved = [self.array.shape[self.axis], *np.delete(self.array.shape, self.axis)]
        return np.moveaxis(self.target.reshape(moved), 0, self.axis).astype(self.array.dtype)


class RowGrid(ABC):
    """The scales that data-aware rounding tries for one weight. plain: W1 as the plain encoder has it."""

    plain: EncodedWeight

    @abstractmethod
    def grid(self) -> Grid:
        """The candidates of every group of columns, the plain encoder's first."""

    def refit(self) -> Callable[[Float], Float] | None:
        """How scales [N, M, 1] are represented, where a closed-form fit is of use."""
        return None

    @abstractmethod
    def encoded(self, found: Rounded) -> EncodedWeight:
        """Rounded rows, on scales of the grid or of `refit`, in the layout of a file."""


class WeightFormat(Grammar):
    """One weight format. learnable: whether a code has neighbours one step away, which may be learned.

    trainable: whether training may run the encoder in every step, straight through.
    """

    learnable: bool = True
    trainable: bool = False
    streams: Sequence[Stream] = ()
    simulation: Simulation | None = None

    # As text

    def weights(self, scheme: Scheme, text: str) -> Scheme:
        """The scheme of weights that the text means. Raises PolicyError where it makes no sense for them."""
        if scheme.dynamic:
            raise PolicyError(f"'{text}': weights are quantized ahead of time; dynamic is for activations")
        return scheme

    def activations(self, scheme: Scheme, text: str) -> Scheme:
        """The scheme of activations that the text means. Raises PolicyError where it makes no sense."""
        raise PolicyError(f"'{text}': {self.name} holds weights, no activations; write uint8, gse6 or float")

    activation_rule: str = "activations are float, integers or gse"

    def holds_activations(self, scheme: Scheme) -> bool:
        """Whether activations may have the scheme."""
        return False

    def activation_opset(self, scheme: Scheme) -> int:
        """The least opset for activations in the scheme."""
        return 0

    # As numbers

    @abstractmethod
    def encode(
        self,
        array: Array,
        scheme: Scheme,
        axis: int,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        """Encode a finite weight, float16 or float32 of any shape, with output channels on `axis`.

        floor: least scale per channel [C] (or scalar). half: scales of float16, if it can hold them.
        """

    def placeholder(self, array: Array, scheme: Scheme, axis: int) -> EncodedWeight | None:
        """A weight that takes the same bytes and is made at once; None where encoding is fast anyway."""
        return None

    def recoded(self, held: EncodedWeight, array: Array, scheme: Scheme, codes: Array) -> EncodedWeight:
        """`held` with other codes [C, K] on the same scales. array: the weight it is of."""
        raise PolicyError(f"{scheme}: its codes cannot be changed one by one")

    def code_range(self, scheme: Scheme) -> tuple[int, int]:
        """Lowest and highest code."""
        raise PolicyError(f"{scheme}: its codes are not a range of whole numbers")

    def grid(self, task: RowTask) -> RowGrid:
        """What rounding by data chooses from. Formats that round in a way of their own have none."""
        raise PolicyError(f"{task.scheme}: has no grid to round on")

    def rounded(
        self, task: RowTask, metric: Metric | None, sweeps: int, learning: Learning | None
    ) -> EncodedWeight:
        """W1 rounded in the metric (H and its factor), or plainly without one."""
        rows = self.grid(task)
        if metric is None:
            return rows.plain
        learned = learning if self.learnable else None
        found = round_rows(
            task.target, *metric, rows.grid(), sweeps=sweeps, represent=rows.refit(), learning=learned
        )
        return rows.encoded(found)

    def quick_sweeps(self, sweeps: int) -> int:
        """Sweeps of coordinate descent where a layer only has to err about as it will."""
        return sweeps

    def plain_only(self, scheme: Scheme) -> str | None:
        """Why weights of the scheme are not rounded by data; None where they are."""
        return None

    def unlearned(self, scheme: Scheme) -> str | None:
        """What to say where codes should be learned and cannot be."""
        return None

    def losses(self, encoded: EncodedWeight) -> str | None:
        """What the user should know about an encoded weight."""
        return None

    # In a file

    @abstractmethod
    def forms(self, scheme: Scheme) -> Sequence[Form]:
        """The forms that the file may have, the best one first."""

    def form(self, scheme: Scheme, integer_activations: bool = False, standard: bool = False) -> Form:
        """The form for a layer. integer_activations: an integer kernel is to read codes, if there are any.

        Raises PolicyError where ONNX's own types are asked for and cannot hold the format.
        """
        offered = [form for form in self.forms(scheme) if form.standard or not standard]
        if not offered:
            raise PolicyError(f"{self.no_standard_form}; drop standard")
        codes = [form for form in offered if form.gives == "codes"] if integer_activations else []
        return (codes or offered)[0]

    no_standard_form: str = "the format has no form in ONNX's own types"


def format_of(scheme: Scheme) -> WeightFormat:
    """The format of a scheme that is not float."""
    found = GRAMMARS[scheme.format]
    assert isinstance(found, WeightFormat)  # register takes nothing else
    return found


def finite(array: Array) -> npt.NDArray[np.float32]:
    """The weight in float32. Raises UnsupportedModelError for NaN or Inf."""
    weight = np.asarray(array, np.float32)
    if not np.isfinite(weight).all():
        raise UnsupportedModelError("holds NaN or Inf")
    return weight
