"""What all figures share: canvas, colours, markers, legend.

Colours are those of Okabe and Ito, which the colour-blind can tell apart, and every mode has its own marker
besides. Figures are made with matplotlib's objects and drawn by Agg, so no display and no global state.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from onnxq.report.labels import plain, without_font_warnings

__all__ = [
    "COLOURS",
    "FAINT",
    "INK",
    "MARKERS",
    "add_legend",
    "columns",
    "down_arrows",
    "mode_handle",
    "mode_style",
    "new_figure",
    "png",
    "say_empty",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
INK = "#1a1a1a"
FAINT = "#6b6b6b"
_DPI = 120
MARKERS = ("o", "^", "s", "D", "v")
_KNOWN_MODES = ("static", "dynamic")

Points = Iterable[tuple[float, ...]]


def new_figure(
    rows: int, *, height: float, sharex: bool = False, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure 10 inches wide and `height` inches high with `rows` panels, one above the other."""
    figure = Figure(figsize=(10, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 1, sharex=sharex, squeeze=False, height_ratios=ratios)
    panels: list[Axes] = [row[0] for row in grid]
    for axes in panels:
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9a9a9a")
        axes.tick_params(colors=INK, labelsize=10)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(11)
    return figure, panels


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no version, no date inside)."""
    buffer = io.BytesIO()
    with without_font_warnings():
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def mode_style(mode: str) -> tuple[str, str]:
    """(colour, marker) of a mode: the same in every figure of every run."""
    if mode == "float":
        return FAINT, "P"
    if mode in _KNOWN_MODES:
        index = _KNOWN_MODES.index(mode)
    else:
        index = 2 + sum(mode.encode()) % (len(COLOURS) - 2)
    return COLOURS[index], MARKERS[index]


def mode_handle(mode: str) -> Line2D:
    """The legend's entry of a mode."""
    colour, marker = mode_style(mode)
    return Line2D([], [], linestyle="", color=colour, marker=marker, markersize=7, label=plain(mode))


def down_arrows(axes: Axes, points: Points, colour: str = FAINT, label: str | None = None) -> None:
    """Marks at the lower edge for values that lie far below it."""
    axes.scatter(*columns(points), s=45, marker="$\u2193$", c=colour, zorder=6, label=label)


def add_legend(figure: Figure, *panels: Axes, handles: Sequence[Artist] = (), ncols: int = 6) -> None:
    """One legend below all panels, outside the data; every label once, `handles` first."""
    entries: dict[str, Any] = {str(handle.get_label()): handle for handle in handles}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(len(entries), ncols),
            frameon=False,
            fontsize=10,
        )


def say_empty(axes: Axes, text: str) -> None:
    """A sentence in place of data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT, fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])


def columns(points: Points) -> tuple[list[float], list[float]]:
    """[(x, y), ...] as ([x, ...], [y, ...])."""
    rows = list(points)
    return [row[0] for row in rows], [row[1] for row in rows]
