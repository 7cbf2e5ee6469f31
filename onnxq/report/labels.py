"""Place labels beside points so that none covers a point or another label (greedy, in pixels)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

__all__ = ["place_labels", "plain", "shorten_layer_names", "without_font_warnings"]

_OFFSETS_PT = [
    (dx * reach, dy * reach) for reach in (1.0, 1.7, 2.6) for dx, dy in
    ((28, -26), (28, 26), (-28, 26), (-28, -26), (46, 0), (-46, 0), (0, 40), (0, -40), (60, -60), (-60, 60))
]  # fmt: skip


def place_labels(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[float, float, str, str]],
    obstacles: Sequence[tuple[float, float]],
) -> list[Annotation]:
    """Annotate the points `(x, y, text, colour)`, each at the first of many places that covers nothing.

    Where every place covers something, the one that covers least is taken. The layout of the figure must be
    final, since distances are pixels.

    Args:
        obstacles: points in data coordinates that must stay visible.
    """
    with without_font_warnings():
        figure.draw_without_rendering()
    frame = axes.get_window_extent()
    points = [tuple(axes.transData.transform(point)) for point in obstacles]
    taken: list[Bbox] = []
    placed = []
    for x, y, text, colour in labels:
        annotation = _annotate(axes, x, y, text, colour)
        best: tuple[float, tuple[float, float], Bbox] | None = None
        for offset in _OFFSETS_PT:
            _move(annotation, offset)
            box = annotation.get_window_extent().padded(4)
            cost = _cost(box, frame, points, taken)
            if best is None or cost < best[0]:
                best = (cost, offset, box)
            if cost == 0:
                break
        assert best is not None
        _move(annotation, best[1])
        taken.append(best[2])
        placed.append(annotation)
    return placed


def plain(text: str, limit: int = 80) -> str:
    """A name from outside as matplotlib draws it letter by letter: `$` begins no formula, nothing is a line
    break, and the middle of what is too long goes."""
    seen = "".join(letter if letter.isprintable() else "\N{MIDDLE DOT}" for letter in text)
    half = (limit - 1) // 2
    seen = seen if len(seen) <= limit else f"{seen[:half]}…{seen[-half:]}"
    return seen.replace("$", r"\$")


@contextlib.contextmanager
def without_font_warnings() -> Iterator[None]:
    """Letters that the font lacks are drawn as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Glyph.*missing")
        warnings.filterwarnings("ignore", message="(?s).*Matplotlib currently does not support")
        yield


def shorten_layer_names(names: Sequence[str], limit: int = 30) -> list[str]:
    """Layer names for an axis: the start that all share goes, and the middle of what is still too long."""
    parts = [_without_repeats(name.strip("/").split("/")) for name in names]
    common = 0
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    last = {p[-1] for p in parts}
    stop = -1 if len(last) == 1 and len(names) > 1 and all(len(p) > common + 1 for p in parts) else None
    short = ["/".join(p[common:stop]) for p in parts]
    return [plain(name, limit) for name in short]


def _without_repeats(parts: list[str]) -> list[str]:
    """PyTorch exports `blocks.0/blocks.0.1/conv`: a part that begins the next one says nothing."""
    pairs = zip(parts, [*parts[1:], ""], strict=True)
    return [part for part, after in pairs if not after.startswith(f"{part}.")]


def _annotate(axes: Axes, x: float, y: float, text: str, colour: str) -> Annotation:
    annotation = axes.annotate(
        text,
        (x, y),
        xytext=_OFFSETS_PT[0],
        textcoords="offset points",
        fontsize=10,
        color="#1a1a1a",
        zorder=9,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour, "alpha": 0.95},
        arrowprops={"arrowstyle": "-", "color": colour, "shrinkB": 5, "linewidth": 1.2},
    )
    annotation.set_in_layout(False)
    return annotation


def _move(annotation: Annotation, offset: tuple[float, float]) -> None:
    dx, dy = offset
    annotation.xyann = offset
    annotation.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    annotation.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")


def _cost(box: Bbox, frame: Bbox, points: Sequence[tuple[float, ...]], taken: Sequence[Bbox]) -> float:
    outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
    covered = sum(box.x0 <= px <= box.x1 and box.y0 <= py <= box.y1 for px, py in points)
    collisions = sum(bool(box.overlaps(other)) for other in taken)
    return float(50 * outside + 20 * collisions + covered)
