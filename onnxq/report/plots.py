"""The three figures of a run: the front, every objective over the candidates, the errors of the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onnxq.report.drawing import (
    COLOURS,
    FAINT,
    INK,
    add_legend,
    columns,
    down_arrows,
    mode_handle,
    mode_style,
    new_figure,
    png,
    say_empty,
)
from onnxq.report.labels import place_labels, plain, shorten_layer_names
from onnxq.report.view import View, finite
from onnxq.search.candidate import Candidate
from onnxq.search.objectives import Objective, named_objective
from onnxq.search.pareto import front

__all__ = ["FIGURES", "errors_figure", "objectives_figure", "pareto_figure", "png"]

_NAMED_LAYERS = 60
"""More names than this cannot be read on one axis."""
_LOG_SPAN = 30.0
"""From this ratio of largest to smallest on, an error is drawn on a log scale."""
_NOTHING_YET = "no candidate measured yet"


def pareto_figure(report: Mapping[str, Any]) -> Figure:
    """Metric over file size: all candidates, the front with standard errors, float, the picks by name."""
    view = View.of(report)
    figure, (axes,) = new_figure(1, height=6.2)
    _draw_candidates(axes, view)
    _draw_front(axes, view)
    stars = _draw_float(axes, view)
    axes.set_xlabel("size of the file (MB)")
    axes.set_ylabel(plain(view.label))
    axes.set_title(
        f"{plain(report['model'])}: {len(view.front)} of {len(view.candidates)} measured candidates on the "
        f"front of {plain(', '.join(report['objectives']))}",
        loc="left",
        fontsize=13,
    )
    axes.margins(x=0.08, y=0.1)
    if not view.candidates:
        say_empty(axes, _NOTHING_YET)
    quantized = [c for c in view.candidates if c.mode != "float"]
    add_legend(figure, axes, handles=[mode_handle(mode) for mode, _ in view.by_mode(quantized)])
    _annotate_picks(figure, axes, view, stars)
    return figure


def objectives_figure(report: Mapping[str, Any]) -> Figure:
    """Small multiples over the strategy's step: metric, size, latency ratio and BOPs where measured."""
    view = View.of(report)
    readers: list[tuple[str, Callable[[Candidate], float | None]]] = [
        (view.label, view.value),
        ("size (MB)", lambda c: c.bytes / 1e6 if c.bytes else None),
        *((label, objective.latency_ratio) for label, objective in _latencies(report)),
        ("BOPs (G)", lambda c: c.bops / 1e9 if c.bops is not None else None),
    ]
    measured = [row for row in readers if any(finite(row[1](c)) for c in view.candidates)]
    shown = measured or readers[:1]
    figure, panels = new_figure(len(shown), height=0.9 + 2.1 * len(shown), sharex=True)
    for axes, (label, read) in zip(panels, shown, strict=True):
        floor = view.floor if label == view.label else -math.inf
        _objective_panel(axes, view, read, floor)
        axes.set_ylabel(plain(label))
    panels[-1].set_xlabel("step of the search")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_title(f"{plain(report['model'])}: objectives over the candidates", loc="left", fontsize=13)
    if not view.candidates:
        say_empty(panels[0], _NOTHING_YET)
    add_legend(figure, *panels)
    figure.align_ylabels(panels)
    return figure


def _latencies(report: Mapping[str, Any]) -> list[tuple[str, Objective]]:
    """(label of the axis, objective) of every latency of the run; the plain one where it asks for none."""
    timed = [
        objective for text in report["objectives"] if (objective := named_objective(text)).kind == "latency"
    ]
    return [(f"{objective.value} / float", objective) for objective in timed or [Objective.LATENCY]]


def errors_figure(report: Mapping[str, Any]) -> Figure:
    """Both errors of every layer on a log scale, and below them the score that ranks the layers."""
    layers = report["layers"]
    figure, (errors, scores) = new_figure(2, height=6.6, sharex=True, ratios=(1.6, 1.0))
    positions = np.arange(len(layers))
    for field, label, colour, marker in (
        ("qdq_error", "QDQ error", COLOURS[0], "o"),
        ("xmodel_error", "XModel error", COLOURS[1], "^"),
    ):
        values = _floats(layers, field)
        values[~(values > 0)] = np.nan  # a log scale has no place for an exact layer
        errors.plot(positions, values, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label)
    scores.bar(positions, _floats(layers, "score"), width=0.75, color=COLOURS[2], label="ranking score")
    errors.set_ylabel("error of one layer")
    scores.set_ylabel("ranking score")
    errors.set_title(f"{plain(report['model'])}: what quantizing each layer costs", loc="left", fontsize=13)
    scores.margins(x=0.01)
    if not layers:
        say_empty(errors, "no layer errors measured")
        return figure
    errors.set_yscale("log")
    if len(layers) <= _NAMED_LAYERS:
        names = shorten_layer_names([str(layer["name"]) for layer in layers])
        scores.set_xticks(positions, names, rotation=90, fontsize=9 if len(layers) <= 40 else 7.5)
    else:
        scores.set_xlabel("layer, in the order of the graph")
    add_legend(figure, errors, scores)
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "pareto.png": pareto_figure,
    "objectives.png": objectives_figure,
    "errors.png": errors_figure,
}
"""File name -> the function that draws it from a report."""


def _draw_candidates(axes: Axes, view: View) -> None:
    values = [view.value(c) or 0.0 for c in view.candidates]
    is_error = not view.metric.higher_is_better
    if is_error and values and max(values) > _LOG_SPAN * min(values) > 0:
        axes.set_yscale("log")
    for mode, group in view.by_mode(view.candidates):
        colour, marker = mode_style(mode)
        dots = [view.at(c) for c in group if not view.is_low(c) and c.name not in view.on_front]
        axes.scatter(*columns(dots), s=30, c=colour, marker=marker, alpha=0.3, linewidths=0)
        down_arrows(axes, [view.at(c) for c in group if view.is_low(c)], colour)
    if low := sum(map(view.is_low, view.candidates)):
        down_arrows(axes, [], label=f"{low} below {view.floor:.0f} {plain(view.metric.unit)}")


def _draw_front(axes: Axes, view: View) -> None:
    """The line joins only those that are also best in the two axes shown; others won on a third."""
    shown = [c for c in view.front if not view.is_low(c)]
    line = front(shown, (Objective.METRIC, Objective.BYTES), view.metric)
    if line:
        axes.plot(*columns(map(view.at, line)), color=INK, linewidth=1.4, alpha=0.8, zorder=3, label="front")
    for mode, group in view.by_mode(shown):
        colour, marker = mode_style(mode)
        x, y = columns(map(view.at, group))
        axes.errorbar(x, y, yerr=[view.spread(c) for c in group], fmt="none", ecolor=colour, alpha=0.4)
        axes.scatter(x, y, s=75, c=colour, marker=marker, edgecolors="white", linewidths=1.0, zorder=5)


def _draw_float(axes: Axes, view: View) -> list[tuple[float, float]]:
    value = view.value(view.baseline) if view.baseline and view.candidates else None
    if view.baseline is None or value is None or not math.isfinite(value):
        return []
    if axes.get_yscale() == "log" and value <= 0:
        return []
    spot = view.at(view.baseline)
    axes.scatter(*columns([spot]), s=230, marker="*", c="#F0B400", edgecolors=INK, label="float", zorder=7)
    return [spot]


def _annotate_picks(figure: Figure, axes: Axes, view: View, more: Sequence[tuple[float, float]]) -> None:
    titles: dict[str, list[str]] = {}
    for pick in view.report["picks"]:
        titles.setdefault(pick["candidate"], []).append(pick["name"])
    labels = []
    for candidate in view.front:
        if candidate.name in titles:
            x, y = view.at(candidate)
            axes.scatter([x], [y], s=190, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=6)
            text = f"{', '.join(titles[candidate.name])}\n{candidate.name}"
            labels.append((x, y, text, mode_style(candidate.mode)[0]))
    obstacles = [*map(view.at, view.candidates), *more]
    for candidate in view.front:
        (x, y), spread = view.at(candidate), view.spread(candidate)
        obstacles += [(x, y + part * spread) for part in (-1.0, -0.5, 0.5, 1.0)]
    place_labels(figure, axes, labels, obstacles)


def _objective_panel(axes: Axes, view: View, read: Callable[[Candidate], float | None], floor: float) -> None:
    for mode, group in view.by_mode(view.candidates):
        colour, marker = mode_style(mode)
        points = sorted(
            (float(c.step), max(value, floor), c.name in view.on_front)
            for c in group
            if (value := read(c)) is not None and math.isfinite(value)
        )
        if len({point[0] for point in points}) == len(points):
            axes.plot(*columns(points), color=colour, linewidth=1.1, alpha=0.5)
        axes.scatter(
            *columns(points), s=16, c=colour, marker=marker, alpha=0.55, linewidths=0, label=plain(mode)
        )
        if best := [point for point in points if point[2] and point[1] > floor]:
            axes.scatter(
                *columns(best), s=55, c=colour, marker=marker, edgecolors=INK, linewidths=1.0, zorder=4,
                label=f"{plain(mode)}, on the front",
            )  # fmt: skip
        if low := [point for point in points if point[1] <= floor]:
            down_arrows(axes, low, colour, label=f"below {floor:.0f} {plain(view.metric.unit)}")
    level = read(view.baseline) if view.baseline and view.candidates else None
    if level is not None and math.isfinite(level):
        axes.axhline(level, color=FAINT, linestyle=(0, (5, 3)), linewidth=1.2, label="float", zorder=1)


def _floats(layers: Sequence[Mapping[str, Any]], field: str) -> Any:
    values = [layer.get(field) for layer in layers]
    return np.array([math.nan if value is None else float(value) for value in values], dtype=float)
