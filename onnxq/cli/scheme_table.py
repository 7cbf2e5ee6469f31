"""`sensitivity --schemes`: the engine's table on the terminal, as JSON, and in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq.cli.terminal import print_json, remark, table
from onnxq.data import Dataset
from onnxq.files import atomic_write
from onnxq.sensitivity import Settings
from onnxq.tuning.sensitivities import SensitivityTable, sensitivities
from passes.graph.model import Model

__all__ = ["show_schemes"]


def show_schemes(
    model: Model,
    data: Dataset,
    schemes: Sequence[str],
    settings: Settings,
    output: str | None,
    top: int | None,
    as_json: bool,
    activations: Sequence[str] = (),
    calibration: str = "percentile:99.99",
) -> None:
    """Measure, draw and print; worst layer first. output: OUT.png, or a folder that keeps everything."""
    picture = Path(output) if output and output.endswith(".png") else None
    folder = Path(output) if output and picture is None else None
    found = sensitivities(
        model, data, schemes, folder, activations=activations, calibration=calibration, settings=settings
    )
    if output:
        _draw(picture or Path(output) / "sensitivity.png", model.name, found)
    names = list(dict.fromkeys(scheme for _, scheme in found.entries))
    layers = sorted(found.problem.layers, key=lambda name: -found.entries[name, names[0]].mse)[:top]
    if as_json:
        entries = [
            {"layer": layer, "scheme": scheme, **found.entries[layer, scheme].to_json()}
            for layer in layers
            for scheme in names
        ]
        document: dict[str, Any] = {"model": model.name, "schemes": names, "entries": entries}
        print_json(document)
        return
    rows = [(layer, *(f"{found.entries[layer, scheme].mse:.3g}" for scheme in names)) for layer in layers]
    table(["layer", *names], rows, right=tuple(range(1, len(names) + 1)))
    seen = [entry.samples for entry in found.entries.values()]
    remark(f"logit MSE, one layer at a time; {min(seen)} to {max(seen)} of {len(data)} samples each")
    if output:
        remark(f"drawn in {output}" if picture else f"{output}: ready for onnxq allocate")


def _draw(path: Path, model: str, found: SensitivityTable) -> None:
    from onnxq.report.drawing import png
    from onnxq.report.pictures import sensitivity_figure

    costs: dict[str, list[float]] = {}
    for (_, scheme), entry in found.entries.items():
        costs.setdefault(scheme, []).append(entry.mse)
    atomic_write(path, png(sensitivity_figure(model, found.problem.layers, costs)))
