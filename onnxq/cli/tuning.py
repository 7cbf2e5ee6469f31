"""From the options of `tune` to its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxq.cli.options import splitted
from onnxq.tuning import TuneConfig
from onnxq.tuning.strategies import STRATEGIES
from passes.core.fields import declared, to_text

__all__ = ["config_of"]


def config_of(model: str, settings: Mapping[str, Any]) -> TuneConfig:
    """The options as the configuration of one model's run."""
    values = _with_strategy(settings)
    for key in ("modes", "weights", "limits"):
        values[key] = splitted(values[key])
    for key in ("preprocess", "calibration_data", "metric"):
        values[key] = values[key] or ""
    return TuneConfig(**{**values, "model": model})


def _with_strategy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with options of strategies that `TuneConfig` has no field for put behind the strategy."""
    known = declared(TuneConfig)
    kept = {name: value for name, value in settings.items() if name in known}
    kind = STRATEGIES.get(settings["strategy"])
    own = declared(kind) if kind is not None else {}
    words = [f"{name}={to_text(settings[name])}" for name in own if name not in known and name in settings]
    if words:
        kept["strategy"] = f"{settings['strategy']}{{{' '.join(words)}}}"
    return kept
