"""The fronts of several runs in one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onnxq.report.drawing import COLOURS, INK, MARKERS, add_legend, columns, new_figure, png, say_empty
from onnxq.report.labels import plain
from onnxq.report.readings import main_reading

__all__ = ["overlay_figure", "png"]


def overlay_figure(comparison: Mapping[str, Any]) -> Figure:
    """Every run's front and float model (a star in the run's colour); see `compare` for the input."""
    kind = main_reading(comparison)
    scale = kind.scale
    timed = [
        (f"{run}: {name}", points)
        for run, fronts in comparison["fronts"].items()
        for name, points in fronts.get("latency", {}).items()
    ]
    figure, panels = new_figure(2 if timed else 1, height=11.0 if timed else 6.2)
    axes = panels[0]
    for index, (run, points) in enumerate(comparison["fronts"].items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        style = ("-", "--", ":")[index // len(COLOURS) % 3]
        front = [(size / 1e6, scale * float(value)) for size, value in points["front"]]
        axes.plot(*columns(front), color=colour, marker=marker, markersize=7, linestyle=style,
                  markeredgecolor="white", label=plain(run))  # fmt: skip
        if points["float"] and math.isfinite(float(points["float"][1])):
            star = (points["float"][0] / 1e6, scale * float(points["float"][1]))
            axes.scatter(*columns([star]), s=200, marker="*", c=colour, edgecolors=INK, zorder=5)
    axes.set_xlabel("size of the file (MB)")
    axes.set_ylabel(plain(kind.axis))
    axes.set_title("Fronts of the runs; stars are the float models", loc="left", fontsize=13)
    if not any(points["front"] for points in comparison["fronts"].values()):
        say_empty(axes, "no candidate measured yet")
    if timed:
        _draw_latencies(panels[1], timed, scale)
        panels[1].set_ylabel(axes.get_ylabel())
        add_legend(figure, *panels, ncols=1)
    else:
        add_legend(figure, axes, ncols=2)
    return figure


def _draw_latencies(axes: Axes, timed: Sequence[tuple[str, Any]], scale: float) -> None:
    """The fronts in the plane of latency and metric, one line per run and device."""
    for index, (label, points) in enumerate(timed):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        line = [(float(ratio), scale * float(value)) for ratio, value, _ in points]
        axes.plot(
            *columns(line),
            color=colour,
            marker=marker,
            markersize=7,
            markeredgecolor="white",
            label=plain(label),
        )
    axes.set_xlabel("latency / float, on the device")
