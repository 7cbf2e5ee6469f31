"""A scheme, how one tensor is represented, and its text; each format brings the grammar of its schemes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from passes.core.errors import PolicyError
from passes.core.fields import check_fields
from runtime_ops.gse import Encoder

__all__ = ["FLOAT", "GRAMMARS", "Encoder", "Grammar", "Granularity", "Scheme"]

Granularity = Literal["tensor", "channel", "block"]


class Grammar(ABC):
    """What may be said of the schemes of one format.

    name: in `Scheme.format`. prefix: in the text, before the bits. granularity, block: where the text does
    not say them. says_granularity: whether there is a choice, so that the text says it. example: a text.
    is_integer: whether codes are integers on an even grid, which integer kernels may read. rounds: whether
    there are codes at all, or only float numbers of fewer bits.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]
    bits: ClassVar[tuple[int, ...]]
    granularity: ClassVar[Granularity] = "tensor"
    block: ClassVar[int] = 0
    says_granularity: ClassVar[bool] = True
    example: ClassVar[str]
    is_integer: ClassVar[bool] = False
    rounds: ClassVar[bool] = True
    encoders: ClassVar[tuple[Encoder, ...]] = ("nearest",)

    @abstractmethod
    def check(self, scheme: Scheme) -> None:
        """Raises PolicyError where the parts of the scheme do not fit together."""


# Name -> grammar of every format; passes/formats/__init__.py fills it.
GRAMMARS: dict[str, Grammar] = {}


@dataclass(frozen=True)
class Scheme:
    """How one tensor is represented.

    format: a name in the table of formats. bits: of a code. granularity: one scale per tensor, output channel
    or block of `block_size` weights along the flattened row of an output channel. signed: two's complement
    codes. symmetric: zero point 0. dynamic (activations): the range is found at run time. encoder: how GSE
    rounds. Activations in GSE are simulated: `block_size` channels share an exponent that is found at run
    time.
    """

    format: str = "float"
    bits: int = 32
    granularity: Granularity = "tensor"
    block_size: int = 0
    symmetric: bool = True
    signed: bool = True
    dynamic: bool = False
    encoder: Encoder = "nearest"

    def __post_init__(self) -> None:
        check_fields(self, "scheme", PolicyError)
        if self.is_float:
            return
        if self.format not in GRAMMARS:
            raise PolicyError(
                f"'{self.format}' is not a format; the formats are {', '.join(('float', *GRAMMARS))}"
            )
        grammar = self.grammar
        if grammar.is_integer:
            grammar.check(self)
        if (self.granularity == "block") != (self.block_size > 0):
            raise PolicyError("a block scheme, and only that, has a block size, as in int4:block32")
        if not grammar.is_integer:
            grammar.check(self)
        if self.encoder not in grammar.encoders:
            raise PolicyError("only GSE has the paper's encoder, as in gse8:paper")

    @property
    def grammar(self) -> Grammar:
        return GRAMMARS[self.format]

    @property
    def is_float(self) -> bool:
        """Whether the tensor stays as it is."""
        return self.format == "float"

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers, which kernels may read; those of GSE and TCQ are not."""
        return not self.is_float and self.grammar.is_integer

    @property
    def is_static(self) -> bool:
        """Of activations: integers whose range is calibrated ahead of time."""
        return self.is_integer and not self.dynamic

    @property
    def has_codes(self) -> bool:
        """Whether a kernel gets something else than the float numbers of the model."""
        return not self.is_float and self.grammar.rounds

    def __str__(self) -> str:
        if self.is_float:
            return "float"
        grammar = self.grammar
        parts = [f"{'' if self.signed else 'u'}{grammar.prefix}{self.bits}"]
        if grammar.says_granularity and self.granularity == "block":
            parts.append(f"block{self.block_size}")
        elif grammar.says_granularity and self.granularity == "channel":
            parts.append("channel")
        if self.symmetric != self.signed:
            parts.append("sym" if self.symmetric else "asym")
        elif not self.signed:
            parts.append("asym")
        if self.dynamic:
            parts.append("dynamic")
        if self.encoder != "nearest":
            parts.append(self.encoder)
        return ":".join(parts)

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """A scheme from its text form. Raises PolicyError naming the part that is wrong."""
        head, *rest = text.strip().lower().split(":")
        if head in ("float", "fp32", "none"):
            return FLOAT
        grammar, signed, bits = _head(head, text)
        granularity, block = grammar.granularity, grammar.block
        symmetric, dynamic = signed, False
        encoder: Encoder = "nearest"
        for part in rest:
            if part in ("tensor", "channel"):
                granularity, block = ("tensor" if part == "tensor" else "channel"), 0
            elif re.fullmatch(r"block\d+", part):
                granularity, block = "block", int(part[5:])
            elif part in ("sym", "asym"):
                symmetric = part == "sym"
            elif part == "dynamic":
                dynamic = True
            elif part in ("nearest", "paper"):
                encoder = "paper" if part == "paper" else "nearest"
            else:
                raise PolicyError(
                    f"'{text}': '{part}' is none of tensor, channel, blockN, sym, asym, dynamic, paper"
                )
        try:
            return cls(grammar.name, bits, granularity, block, symmetric, signed, dynamic, encoder)
        except PolicyError as error:
            raise PolicyError(f"'{text}': {error}") from None


def _head(head: str, text: str) -> tuple[Grammar, bool, int]:
    """(grammar, signed, bits) of the first part of a scheme's text."""
    for grammar in GRAMMARS.values():
        match = re.fullmatch(rf"(u?){grammar.prefix}(\d+)", head)
        if match is not None:
            return grammar, match.group(1) == "", int(match.group(2))
    examples = ", ".join(grammar.example for grammar in GRAMMARS.values())
    raise PolicyError(f"'{text}' is no scheme; write float, {examples}")


FLOAT = Scheme()
