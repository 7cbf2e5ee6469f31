"""Which options of a tune go together. Messages name fields in backticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.tuning.groups import SchemeOptions
from onnxq.tuning.ladders import schemes_in, smoothable
from onnxq.tuning.strategies import Strategy, readers_of, reads
from passes.core.errors import UserError
from passes.quantize import weight_scheme

__all__ = ["check_smoothing", "check_strategy_with"]

_LIMITS = ("budget", "bops_budget", "costs", "limits")


def check_smoothing(smooth: str, weights: Sequence[str], rounding: str) -> None:
    """Raises UserError where smoothing layer by layer has no meaning or no measure."""
    if smooth != "auto":
        return
    if not any(smoothable(weight_scheme(text)) for text in weights):
        raise UserError("`smooth` auto: serves weights of one scale; give `weights` such as int8:tensor")
    if rounding != "nearest":
        raise UserError(
            f"`smooth` auto: is measured with weights rounded to nearest, not by {rounding}; give "
            "`rounding` nearest, or `smooth` output"
        )


def check_strategy_with(
    strategy: Strategy, given: Mapping[str, tuple[Any, Any]], schemes: SchemeOptions
) -> None:
    """Raises UserError for what a strategy cannot do with the other options.

    given: option -> its value and its default.
    """
    name = strategy.name
    if given["smooth"][0] == "auto" and not strategy.takes_smoothing:
        raise UserError(f"`smooth` auto: {name} has one scheme a layer; give `strategy` auto or ilp")
    for option, (value, default) in given.items():
        # Where the default means that nothing was asked for, any other value was.
        if value and not default and readers_of(option) and not reads(type(strategy), option):
            raise UserError(f"`{option}`: {name} knows no {option}; give `strategy` {readers_of(option)[0]}")
    for mode, ladder in schemes.ladders.items():
        if len(ladder) < strategy.least_schemes:
            least = {2: "one", 3: "two"}.get(strategy.least_schemes, str(strategy.least_schemes - 1))
            raise UserError(
                f"`strategy` {name}: needs at least {least} `weights` schemes that are not float, in {mode}"
            )
    if not strategy.takes_limits:
        for option in _LIMITS:
            if given[option][0]:
                raise UserError(f"`{option}`: {name} knows no limits; give `strategy` auto or ilp")
    activations = given["activations"][0]
    if not strategy.takes_activations and len(schemes_in(activations)) > 1:
        raise UserError(
            f"`activations` {activations}: {name} searches weights alone; give `strategy` auto or ilp"
        )
