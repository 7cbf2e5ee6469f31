"""`tune --dry-run`: what a run would do, after all checks of model, data and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxq.cli.terminal import print_json, say
from onnxq.search import read_journal
from onnxq.tuning import TuneConfig
from onnxq.tuning.prepare import Prepared

__all__ = ["show_plan"]


def _plan(config: TuneConfig, folder: Path) -> dict[str, Any]:
    prepared = Prepared.of(config)
    journal = read_journal(folder)
    held = journal.kinds.get("candidate", {}) if journal else {}
    return {
        "model": config.model,
        "run": str(folder),
        "layers": len(prepared.layers),
        "modes": list(config.modes),
        "strategy": config.chosen_strategy,
        "candidates": _most(config, len(prepared.layers)),
        "finished": sum(entry["mode"] != "float" for entry in held.values()),
        "samples": len(prepared.data),
        "calibration_samples": len(prepared.calibration),
        "config": config.to_json(),
    }


def _most(config: TuneConfig, layers: int) -> int:
    """The most candidates that the strategy proposes."""
    search = config.search_options
    schemes = (len(ladder) - 1 for ladder in config.scheme_options.ladders.values())
    return sum(search.strategy.most(layers, each, search.goal) for each in schemes)


def show_plan(configs: list[TuneConfig], folders: list[Path], as_json: bool) -> None:
    """Print the plan of each model's run. Raises UserError as the run itself would."""
    plans = [_plan(config, folder) for config, folder in zip(configs, folders, strict=True)]
    if as_json:
        print_json(plans[0] if len(plans) == 1 else {"runs": plans})
        return
    for plan in plans:
        say(f"{plan['model']} -> {plan['run']}: {plan['layers']} layers, modes {', '.join(plan['modes'])}")
        say(
            f"  at most {plan['candidates']} candidates of {plan['samples']} samples each, "
            f"{plan['finished']} already measured; ranges from {plan['calibration_samples']} samples"
        )
    say("Nothing was written.")
