"""Options that were typed and that the others leave unread: refused, as nothing else would say so.

Where an option is read stands in its declaration (`Option.when`, and what a strategy reads); for commands
whose options are declared nowhere else it stands here. Values from --config and defaults may go unread: a
configuration serves several commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
from click.core import ParameterSource

from onnxq.cli.flags import flag_of
from passes.core.errors import UserError
from passes.core.fields import When, declared

__all__ = ["refuse_unread", "rules_of"]

Rules = Mapping[str, tuple[When, ...]]

_UNIFORM = When("policy", absent=True)
_GIVEN = When("data|calibration_data")
_REAL = When("random_calibration", absent=True)
_SCHEMES, _LAYERS = When("schemes"), When("schemes", absent=True)
_FRONT = When("tau", absent=True)
_RULES: dict[str, Rules] = {
    "quantize": {
        "weights": (_UNIFORM,),
        "granularity": (_UNIFORM,),
        "activations": (_UNIFORM,),
        "calibration": (When("activations", "dynamic", "*:dynamic", "float", "none", "gse*", absent=True),),
        "smooth_layers": (When("smooth", "output", "input"),),
        "damping": (When("rounding", "gptq", "adaround", "brecq"),),
        "brecq_steps": (When("rounding", "brecq"),),
        "data": (_REAL,),
        "calibration_data": (_REAL,),
        "preprocess": (_REAL, _GIVEN),
        "limit": (_REAL, _GIVEN),
    },
    "apply": {
        "preprocess": (_GIVEN,),
        "limit": (_GIVEN,),
        "calibration_samples": (_GIVEN,),
        "calibration": (_GIVEN,),
        "damping": (_GIVEN,),
    },
    "sensitivity": {
        "weights": (_LAYERS,),
        "activations": (_LAYERS,),
        "ranking_samples": (_LAYERS,),
        "with_activations": (_SCHEMES,),
        "precision": (_SCHEMES,),
        "cache_mb": (_SCHEMES,),
    },
    "allocate": {
        "tau": (When("strategy", "threshold"),),
        "bits": (When("strategy", "threshold"),),
        "over": (When("strategy", "ilp"),),
        "budget": (_FRONT,),
        "bops": (_FRONT,),
        "limits": (_FRONT,),
        "front": (_FRONT,),
    },
    "bench": {"preprocess": (When("data"),)},
}


def rules_of(command: str) -> Rules:
    """Option -> where it is read, of the options of a command that are not always read."""
    if command == "tune":
        from onnxq.tuning import TuneConfig

        return _declared(TuneConfig)
    if command == "train":
        from onnxq.training.config import TrainConfig

        return _declared(TrainConfig)
    return _RULES.get(command, {})


def refuse_unread(ctx: click.Context) -> None:
    """Raises UserError for the first option that was typed for the running command and is read by nothing."""
    flags = {parameter.name: flag_of(parameter) for parameter in ctx.command.params}
    for name, partner in _unread(ctx.command.name or "", ctx.params):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UserError(f"{flags[name]}: nothing here reads it; it goes {partner}")


def _declared(kind: type[Any]) -> Rules:
    return {name: spec.option.conditions for name, spec in declared(kind).items() if spec.option.conditions}


def _unread(command: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, what it goes with) of those that nothing reads, however they came."""
    for name, conditions in rules_of(command).items():
        for when in conditions:
            there = [settings[field] for field in when.fields if field in settings]
            if there and not when.holds(next(filter(None, there), there[0])):
                yield name, str(when)
    if command == "tune":
        from onnxq.cli.strategies import unread_by_strategy

        yield from unread_by_strategy(settings)
