"""The pass protocol: one `__call__` that imports, runs, checks and returns; `Sequential`; the registry.

A pass is a frozen dataclass whose fields are its options. It implements `run(graph, context)`,
which edits a graphsurgeon graph in place and says truthfully whether it changed it, or
`transform(model, context)` when it works on the whole model.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.errors import GraphError, PassError, RecipeError, UserError
from passes.core.fields import check_fields
from passes.formats.weights import EncodedWeight
from passes.graph.boundary import export_graph, import_graph, losses
from passes.graph.file_growth import growth
from passes.graph.model import Model, check
from passes.rounding.task import Rounder

__all__ = [
    "Context",
    "Courtesy",
    "GraphPass",
    "Note",
    "Pass",
    "PassResult",
    "RangeProvider",
    "RepeatedPass",
    "Sequential",
    "format_pass",
    "pass_class",
    "pass_names",
    "register",
]

OLDEST_OPSET = 7
# What needs no quotes in the text form of a pass (passes/core/recipe.py reads it).
BARE_WORD = re.compile(r"[^\s{}|\"#=]+")
Vector = npt.NDArray[np.float64]
# (model at that point, [(tensor name, bits)]) -> tensor name -> (low, high), the calibrated real range.
RangeProvider = Callable[[Model, Sequence[tuple[str, int]]], Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Note:
    """What a pass did or refused at a node, and why. `kind`: applied, refused, skipped or info."""

    kind: str
    node: str
    reason: str

    def __str__(self) -> str:
        where = f" {self.node}" if self.node else ""
        return f"{self.kind}{where}: {self.reason}"


@dataclass
class Context:
    """What the application lends to passes: calibrated ranges, a rounder of weights that has seen data,
    weights that stand as codes already, and a place for their notes.

    encoded: layer -> codes, which training found. distributions: tensor -> (mean, standard deviation) by
    channel [C], as the BatchNormalization said that was folded there; left by `fold_batchnorm` for passes
    behind it.
    """

    ranges: RangeProvider | None = None
    rounder: Rounder | None = None
    encoded: Mapping[str, EncodedWeight] = field(default_factory=dict)
    check: bool = True
    distributions: dict[str, tuple[Vector, Vector]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def note(self, kind: str, node: str, reason: str) -> None:
        self.notes.append(Note(kind, node, reason))


@dataclass(frozen=True)
class PassResult:
    """The model after the pass, whether it differs from the one before, and the notes."""

    model: Model
    modified: bool
    notes: tuple[Note, ...] = ()


class Pass(ABC):
    """One rewrite of a model. Subclasses are frozen dataclasses; `name` is their name in recipes."""

    name: ClassVar[str] = ""
    # Whether tensors that keep their names keep their values, so that what is known about them stays true.
    keeps_values: ClassVar[bool] = False
    # Whether the rewritten model computes the same function; it is then held to that before it is saved.
    keeps_function: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raises RecipeError for a field whose annotation does not allow its value."""
        check_fields(self, f"pass {self.name}", RecipeError)

    @abstractmethod
    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        """The rewritten model and whether it changed. Must not touch `model` itself."""

    def __call__(self, model: Model, context: Context | None = None) -> PassResult:
        """Run the pass and check what it made.

        Raises GraphError naming the pass when the graph cannot be edited, PassError when the rewritten model
        fails the ONNX checker.
        """
        context = context or Context()
        own = dataclasses.replace(context, notes=[])
        try:
            result, modified = self.transform(model, own)
        except GraphError as error:
            reason = str(error).removeprefix(f"{model.name}: ")
            prefix = "" if reason.startswith("pass '") else f"pass '{self.name}' cannot work on it: "
            raise GraphError(f"{model.name}: {prefix}{reason}") from error
        if modified:
            told = {note.reason for note in own.notes}
            for loss in losses(model.proto, result.proto):
                if loss not in told:  # a pass inside this one may have told it
                    own.note("info", "", loss)
        if modified and not self.keeps_values:
            context.distributions.clear()
        if modified and context.check:
            try:
                check(result)
            except UserError as error:
                # What the checker refuses of the model as it came is not this pass's fault (admission.py).
                if not _refused(model):
                    raise PassError(
                        f"{model.name}: pass '{self.name}' made an invalid model: {error}"
                    ) from error
        context.notes.extend(own.notes)
        if modified:
            # A pass of several steps has remembered them, and what its last step was applied to.
            remembered = len(result.history) > len(model.history) and result.history[-1].name == self.name
            made = result if remembered else result.rewritten(self.name, model, exact=self.keeps_function)
            return PassResult(made, True, tuple(own.notes))
        return PassResult(model, False, tuple(own.notes))

    def __or__(self, other: Pass) -> Sequential:
        return Sequential((*_members(self), *_members(other)))

    def __str__(self) -> str:
        return format_pass(self)


def _refused(model: Model) -> bool:
    """Whether the ONNX checker refuses the model."""
    try:
        check(model)
    except UserError:
        return True
    return False


class GraphPass(Pass):
    """A pass that edits a graphsurgeon graph in place."""

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        graph = import_graph(model)
        if not self.run(graph, context):
            return model, False
        return export_graph(graph, model), True

    @abstractmethod
    def run(self, graph: gs.Graph, context: Context) -> bool:
        """Edit `graph` in place; True if and only if anything changed."""


class RepeatedPass(GraphPass):
    """A graph pass that runs until it changes nothing, for one rewrite may make another possible.

    Opsets before OLDEST_OPSET broadcast and train differently; such a model is refused. One of which the pass
    would make a larger file is left untouched.
    """

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        own = dataclasses.replace(context, notes=[])
        result, modified = self._repeated(model, own)
        more = growth(model.proto, result.proto) if modified else 0
        if more > 0:
            context.note("refused", "", f"would make the file {more} bytes larger; left untouched")
            return model, False
        context.notes.extend(own.notes)
        return result, modified

    def _repeated(self, model: Model, context: Context) -> tuple[Model, bool]:
        if model.opset() < OLDEST_OPSET:
            raise GraphError(
                f"{model.name}: opset {model.opset()} is before {OLDEST_OPSET}; export it at a newer one"
            )
        modified, applied = False, list[Note]()
        while True:
            # Every round refuses the same rewrites again; only the last one's refusals count.
            own = dataclasses.replace(context, notes=[])
            model, changed = super().transform(model, own)
            applied.extend(note for note in own.notes if note.kind == "applied")
            if not changed:
                context.notes.extend(applied)
                context.notes.extend(note for note in own.notes if note.kind != "applied")
                return model, modified
            modified = True


def _members(item: Pass) -> tuple[Pass, ...]:
    return item.members if isinstance(item, Sequential) else (item,)


@dataclass(frozen=True)
class Sequential(Pass):
    """Passes one after the other; itself a pass. An error names the passes that already ran."""

    members: tuple[Pass, ...] = ()
    name: ClassVar[str] = "sequential"

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.members)

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        modified = False
        done: list[str] = []
        for member in self.members:
            try:
                result = member(model, context)
            except PassError as error:
                ran = ", ".join(done) or "none"
                raise PassError(f"{error} (passes that already ran: {ran})") from error
            model, modified = result.model, modified or result.modified
            done.append(member.member.name if isinstance(member, Courtesy) else member.name)
        return model, modified

    def __call__(self, model: Model, context: Context | None = None) -> PassResult:
        # Each member has checked its own result; checking the whole again would cost and say nothing.
        context = context or Context()
        start = len(context.notes)
        result, modified = self.transform(model, context)
        return PassResult(result, modified, tuple(context.notes[start:]))


@dataclass(frozen=True)
class Courtesy(Pass):
    """A pass that nobody asked for: on a graph that it cannot edit it leaves a note, and the next one runs.

    Its text is that of the pass in it.
    """

    member: Pass
    name: ClassVar[str] = "courtesy"

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        try:
            result = self.member(model, context)
        except GraphError as error:
            context.note("skipped", "", str(error))
            return model, False
        return result.model, result.modified

    def __call__(self, model: Model, context: Context | None = None) -> PassResult:
        # The member has checked its own result.
        context = context or Context()
        start = len(context.notes)
        result, modified = self.transform(model, context)
        return PassResult(result, modified, tuple(context.notes[start:]))

    def __str__(self) -> str:
        return format_pass(self.member)


_REGISTRY: dict[str, type[Pass]] = {}
P = TypeVar("P", bound=type[Pass])


def register(cls: P) -> P:
    """Class decorator: make the pass known to recipes and the command line by its `name`."""
    if not cls.name or cls.name in _REGISTRY:
        raise ValueError(f"pass {cls.__name__} needs a name of its own, not '{cls.name}'")
    _REGISTRY[cls.name] = cls
    return cls


def pass_class(name: str) -> type[Pass] | None:
    """The registered pass of that name, if any."""
    return _REGISTRY.get(name)


def pass_names() -> list[str]:
    return sorted(_REGISTRY)


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = ",".join(str(item) for item in value)
    text = str(value)
    # The reader takes a comma at the end of a bare word for a slip.
    if BARE_WORD.fullmatch(text) and not text.endswith(","):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def format_pass(item: Pass) -> str:
    """The pass as recipe text; `parse_recipe` gives the same pass back."""
    if isinstance(item, Courtesy):
        return format_pass(item.member)
    if isinstance(item, Sequential):
        return " | ".join(format_pass(member) for member in item.members)
    options = []
    for spec in dataclasses.fields(item):  # type: ignore[arg-type]
        value = getattr(item, spec.name)
        if spec.default is dataclasses.MISSING or value != spec.default:
            options.append(f"{spec.name}={_format_value(value)}")
    return item.name + (f"{{{' '.join(options)}}}" if options else "")
