"""Pictures of a training: bits of every layer, nonzero LSBs, compression, loss and accuracy over the
epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.files import atomic_write
from onnxq.report.labels import plain, shorten_layer_names

__all__ = ["draw"]


def draw(history: Sequence[Mapping[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write bits.png and curves.png, as far as the log has what they show; the files written."""
    written = []
    if history and "bits" in history[0]:
        written.append(_write(_bit_scheme(history, name), folder / "bits.png"))
    if history:
        written.append(_write(_curves(history, name), folder / "curves.png"))
    return written


def _write(figure: Any, path: Path) -> Path:
    # Imported late: it loads matplotlib.
    from onnxq.report.drawing import png

    atomic_write(path, png(figure))
    return path


def _bit_scheme(history: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Layers from top to bottom, epochs from left to right, bits as colours and numbers at the end."""
    from matplotlib.figure import Figure

    layers = list(history[0]["bits"])
    table = np.asarray([[entry["bits"][layer] for layer in layers] for entry in history]).T
    # A layer that is float has 32 bits; the colours are for 2 to 8.
    figure = Figure(figsize=(9, max(3.0, 0.26 * len(layers) + 1.4)), layout="constrained")
    axes = figure.subplots()
    # What a line of the log says holds from there on, until the next one.
    epochs = np.asarray([float(entry["epoch"]) for entry in history])
    edges = np.append(epochs, epochs[-1]) + 1e-6 * np.arange(len(epochs) + 1)
    mesh = axes.pcolormesh(
        edges, np.arange(len(layers) + 1), np.minimum(table, 8), cmap="viridis", vmin=2, vmax=8
    )
    for row, bits in enumerate(table[:, -1]):
        text = "float" if bits > 16 else str(bits)
        axes.annotate(text, (1.0, row + 0.5), xycoords=("axes fraction", "data"), xytext=(3, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(np.arange(len(layers)) + 0.5, shorten_layer_names(layers), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("epoch")
    axes.set_title(f"{plain(name)}: bits a weight", loc="left")
    figure.colorbar(mesh, ax=axes, label="bits", pad=0.06)
    return figure


def _curves(history: Sequence[Mapping[str, Any]], name: str) -> Any:
    from matplotlib.figure import Figure

    shown = [
        (("loss",), "loss"),
        (("accuracy", "training_accuracy"), "accuracy"),
        (("nonzero_lsb",), "nonzero LSBs"),
        (("compression",), "compression"),
    ]
    present = [
        (keys, label) for keys, label in shown if any(key in entry for entry in history for key in keys)
    ]
    figure = Figure(figsize=(8, 2.0 * len(present) + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(present), 1, sharex=True))
    for axes, (keys, label) in zip(panels, present, strict=True):
        for key in keys:
            points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=key.replace("_", " "))
        axes.set_ylabel(label)
        if len(keys) > 1:
            axes.legend(frameon=False)
    panels[-1].set_xlabel("epoch")
    panels[0].set_title(plain(name), loc="left")
    return figure
