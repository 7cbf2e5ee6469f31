"""The fronts of several runs in one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from onnxq.report.drawing import COLOURS, INK, MARKERS, add_legend, columns, new_figure, png, say_empty
from onnxq.search.objectives import metric_named

__all__ = ["overlay_figure", "png"]


def overlay_figure(comparison: Mapping[str, Any]) -> Figure:
    """Every run's front and float model (a star in the run's colour); see `compare` for the input."""
    kind = metric_named(comparison["metric"])
    scale = 100.0 if kind.percent else 1.0
    figure, (axes,) = new_figure(1, height=6.2)
    for index, (run, points) in enumerate(comparison["fronts"].items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        style = ("-", "--", ":")[index // len(COLOURS) % 3]
        front = [(size / 1e6, scale * float(value)) for size, value in points["front"]]
        axes.plot(*columns(front), color=colour, marker=marker, markersize=7, linestyle=style,
                  markeredgecolor="white", label=run)  # fmt: skip
        if points["float"] and math.isfinite(float(points["float"][1])):
            star = (points["float"][0] / 1e6, scale * float(points["float"][1]))
            axes.scatter(*columns([star]), s=200, marker="*", c=colour, edgecolors=INK, zorder=5)
    axes.set_xlabel("size of the file (MB)")
    axes.set_ylabel(kind.label + (" (%)" if kind.percent else ""))
    axes.set_title("Fronts of the runs; stars are the float models", loc="left", fontsize=13)
    if not any(points["front"] for points in comparison["fronts"].values()):
        say_empty(axes, "no candidate measured yet")
    add_legend(figure, axes, ncols=2)
    return figure
