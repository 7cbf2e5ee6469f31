"""Pictures of the bit search: sensitivity across layers, the allocation, quality and size over group size.

They show what GSE-MN4's figures 2, 3 and 4 show; and how SMPQ's Shapley values settle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from onnxq.report.drawing import COLOURS, MARKERS, add_legend, new_figure
from onnxq.report.labels import plain, shorten_layer_names

__all__ = ["allocation_figure", "group_size_figure", "sensitivity_figure", "shapley_figure"]

_NAMED_LAYERS = 60
_INCHES_A_LETTER = 0.1
_SMOOTHED: dict[str, Any] = {"facecolor": "none", "edgecolor": "#ffffff", "hatch": "////", "linewidth": 0}


def _name_layers(axes: object, layers: Sequence[str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    if len(layers) <= _NAMED_LAYERS:
        names = shorten_layer_names(list(layers))
        axes.set_xticks(range(len(layers)), names, rotation=90, fontsize=9 if len(layers) <= 40 else 7.5)
    else:
        axes.set_xlabel("layer, in the order of the graph")
    axes.margins(x=0.01)


def sensitivity_figure(model: str, layers: Sequence[str], costs: Mapping[str, Sequence[float]]) -> Figure:
    """Logit MSE of each layer in each scheme alone, log scale. costs: scheme -> one value a layer."""
    figure, (axes,) = new_figure(1, height=5.6)
    for index, (scheme, values) in enumerate(costs.items()):
        array = np.array(values, np.float64)
        array[~(array > 0)] = np.nan  # a log scale has no place for an exact layer
        axes.plot(
            range(len(layers)),
            array,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            label=scheme,
        )
    axes.set_yscale("log")
    axes.set_ylabel("logit MSE with this layer alone")
    axes.set_title(f"{plain(model)}: sensitivity of {len(layers)} layers", loc="left", fontsize=13)
    _name_layers(axes, layers)
    add_legend(figure, axes)
    return figure


def allocation_figure(
    model: str,
    layers: Sequence[str],
    policies: Mapping[str, Sequence[int]],
    megabytes: Mapping[str, float],
    smoothed: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Figure:
    """Weight bits of every layer under several policies. policies: title -> bits, 32 for float. smoothed:
    title -> positions of the layers that are smoothed, which are hatched."""
    longest = max(map(len, shorten_layer_names(list(layers))), default=0)
    named = _INCHES_A_LETTER * longest if len(layers) <= _NAMED_LAYERS else 0.0
    height = max(1.6, 1.0 + named) + 1.5 * len(policies)
    figure, panels = new_figure(len(policies), height=height, sharex=True)
    widths = sorted({bits for row in policies.values() for bits in row})
    colours = colormaps["viridis"](np.linspace(0.05, 0.9, max(len(widths), 1)))
    for axes, (title, row) in zip(panels, policies.items(), strict=True):
        bits = np.minimum(np.array(row), 10)  # float would dwarf the rest
        for width, colour in zip(widths, colours, strict=True):
            chosen = [index for index, value in enumerate(row) if value == width]
            axes.bar(chosen, bits[chosen], color=colour, width=0.85)
        places = list(smoothed.get(title, ()))
        axes.bar(places, bits[places], width=0.85, **_SMOOTHED)
        axes.set_ylim(0, max(8, int(bits.max())) + 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.set_ylabel("bits")
        size = f", {megabytes[title]:.2f} MB" if title in megabytes else ""
        axes.set_title(f"{plain(title)}{size}", loc="left", fontsize=11)
    figure.suptitle(f"{plain(model)}: bits per layer", x=0.01, ha="left", fontsize=13)
    _name_layers(panels[-1], layers)
    labels = ["float" if width == 32 else f"{width} bits" for width in widths]
    patches = [Patch(color=colour, label=label) for label, colour in zip(labels, colours, strict=True)]
    if any(smoothed.values()):
        patches.append(Patch(label="smoothed", **{**_SMOOTHED, "edgecolor": "#6b6b6b"}))
    add_legend(figure, *panels, handles=patches)
    return figure


def group_size_figure(
    model: str, rows: Mapping[str, Sequence[tuple[int, float, float]]], label: str, floor: float | None = None
) -> Figure:
    """Quality and size over the group size. rows: scheme -> (G, quality, MB). floor: float's quality."""
    figure, (quality, size) = new_figure(2, height=6.6, sharex=True)
    for index, (scheme, points) in enumerate(rows.items()):
        groups, values, megabytes = zip(*sorted(points), strict=True)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        quality.plot(groups, values, label=scheme, linewidth=1.4, color=colour, marker=marker)
        size.plot(groups, megabytes, linewidth=1.4, color=colour, marker=marker)
    if floor is not None:
        quality.axhline(floor, color="#6b6b6b", linestyle="--", linewidth=1, label="float")
    every = sorted({group for points in rows.values() for group, _, _ in points})
    size.set_xscale("log", base=2)
    size.set_xticks(every, [str(group) for group in every])
    size.minorticks_off()
    size.set_xlabel("weights that share an exponent (G)")
    size.set_ylabel("size of the file (MB)")
    quality.set_ylabel(plain(label))
    quality.set_title(f"{plain(model)}: group size", loc="left", fontsize=13)
    add_legend(figure, quality)
    return figure


def shapley_figure(
    model: str,
    layers: Sequence[str],
    changes: Sequence[float],
    values: Mapping[str, Sequence[float]],
    factors: Sequence[float],
) -> Figure:
    """Convergence, and each layer's value. values: mean, half (of its 95 % interval, infinite where unknown)
    and expected, in ln MSE, a number a layer. factors: on the layers' sensitivities."""
    figure, (change, value, factor) = new_figure(3, height=10.5, ratios=(1, 1.5, 1))
    change.plot(range(1, len(changes) + 1), changes, color=COLOURS[0], marker=MARKERS[0], linewidth=1.4)
    change.set_ylabel("relative change")
    change.set_xlabel("walks")
    change.xaxis.set_major_locator(MaxNLocator(integer=True))
    change.set_ylim(bottom=0)
    change.set_title(f"{plain(model)}: change of the Shapley values with each walk", loc="left", fontsize=13)
    at = np.arange(len(layers))
    half = np.array(values["half"], np.float64)
    bars = np.where(np.isfinite(half), half, 0)
    style: dict[str, Any] = {"linestyle": "", "markersize": 5, "linewidth": 1.2}
    value.errorbar(
        at, values["mean"], bars, label="seen on the walks, 95 %", color=COLOURS[0], marker="o", **style
    )
    value.plot(at, values["expected"], label="predicted by S", color=COLOURS[1], marker="_", **style)
    value.set_ylabel("ln MSE of a step")
    value.set_title("the layer's weightiest player", loc="left", fontsize=11)
    value.set_xticks([])
    factor.bar(at, np.array(factors) - 1, bottom=1, color=COLOURS[2], width=0.8)
    factor.set_ylabel("factor on S")
    _name_layers(factor, layers)
    for axes in (value, factor):
        axes.set_xlim(-0.6, len(layers) - 0.4)
    add_legend(figure, value)
    return figure
