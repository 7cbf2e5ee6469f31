"""Write and read a run's report: `report.json`, its PNGs, and `report.html` that holds everything.

The report is written again after every candidate, so that a killed run leaves a whole one. Data come first
(JSON), then the figures, then the page that embeds them. Figures cost seconds of CPU where JSON and page
cost milliseconds, so they are drawn at most every few seconds and at the end.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2

from onnxq.files import atomic_write, atomic_write_json, make_folder
from onnxq.metrics.reading import Reading
from onnxq.report.contents import REPORT_SCHEMA
from onnxq.report.readings import reading_in
from onnxq.report.shape import checked_report
from onnxq.search.candidate import Candidate
from passes.core.errors import UserError
from passes.graph.jsontext import read_json

__all__ = ["ReportWriter", "data_uri", "load_report", "page", "render_html", "write_report"]

_WAIT_PER_COST = 19.0
"""Seconds to wait for each second that drawing took: figures cost at most a twentieth of a run."""

_JSON_NAME = "report.json"
_HTML_NAME = "report.html"
_FRONT_FIGURE = "pareto.png"
_ERRORS_FIGURE = "errors.png"
_FIGURE_NAMES = (_FRONT_FIGURE, "objectives.png", _ERRORS_FIGURE)
# NAME-MODE.png, which searches hand over (`ReportWriter.embed`), in this order.
_MODE_CAPTIONS = {
    "sensitivity": "Error of the logits with one layer alone in each scheme, across the layers.",
    "allocation": "Bits of every layer in the picks.",
    "group_size": "Quality and file size over the number of weights that share a scale or an exponent.",
    "shapley": "How the Shapley values settled over the walks, and what they make of the sensitivities.",
}
_CAPTIONS = {
    "pareto.png": "Quality over file size. Bars are one standard error; what the line leaves out is on the "
    "front for an objective that this plane does not show.",
    "objectives.png": "Every objective over the steps of the search; marks with an edge are on the front.",
    "errors.png": "What quantizing one layer alone costs, in the order of the graph.",
}


class ReportWriter:
    """Keeps the report of one run current.

    Figures of an earlier writer on the same folder are not embedded: they may belong to another run.

    Args:
        folder: the run folder.
        plot_every_s: draw the figures at most this often; `write(..., final=True)` always draws them.
        first_plot_after_s: the first figures wait this long, for a plot of one candidate shows nothing.
        clock: seconds, monotonic (for tests).
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        plot_every_s: float = 20.0,
        first_plot_after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self._every = plot_every_s
        self._clock = clock
        self._next_drawing = clock() + first_plot_after_s
        self._figures: dict[str, bytes] = {}

    def write(self, report: Mapping[str, Any], *, final: bool = False) -> None:
        """Write `report` (see `make_report`) into the run folder, each file atomically.

        Raises:
            OutputError: a file cannot be written; those written before are whole.
        """
        make_folder(self.folder)
        atomic_write_json(self.folder / _JSON_NAME, report)
        if final or self._clock() >= self._next_drawing:
            self._draw(report, whole=final or not self._figures.keys() & set(_FIGURE_NAMES))
        atomic_write(self.folder / _HTML_NAME, render_html(report, str(self.folder), self._figures))

    def embed(self, name: str, picture: bytes) -> None:
        """Hold one more picture from the next `write` on; name: `sensitivity-MODE.png` and the like.

        Raises:
            ValueError: there is no caption for that name.
        """
        if _caption(name) is None:
            raise ValueError(f"{name} is no picture of a report")
        self._figures[name] = picture

    def _draw(self, report: Mapping[str, Any], *, whole: bool) -> None:
        """Draw the figures; in the middle of a run only the front, which is what people watch."""
        # Imported late: matplotlib takes a second, which `onnxq --help` need not wait for.
        from onnxq.report.plots import FIGURES, png

        start = self._clock()
        for name, draw in FIGURES.items():
            if not whole and name != _FRONT_FIGURE:
                continue
            if name == _ERRORS_FIGURE and not report["layers"]:
                continue  # only ranking measures them
            self._figures[name] = png(draw(report))
            atomic_write(self.folder / name, self._figures[name])
        # On a slow machine figures may cost seconds; the search keeps most of its time.
        done = self._clock()
        self._next_drawing = done + max(self._every, _WAIT_PER_COST * (done - start))


def write_report(run_folder: str | PathLike[str], report: Mapping[str, Any], *, plots: bool = True) -> None:
    """Write a report once, for a run that is over; see `ReportWriter` for one that goes on.

    Args:
        plots: False leaves the PNGs as they are and embeds those that are there.

    Raises:
        OutputError: a file cannot be written.
    """
    writer = ReportWriter(run_folder)
    if not plots:
        writer._next_drawing = math.inf
        writer._figures = _stored_figures(writer.folder)
    writer.write(report, final=plots)


def load_report(folder: str | PathLike[str]) -> dict[str, Any]:
    """The report of a run folder.

    Raises:
        UserError: there is none, it is damaged, or another version of onnxq wrote it.
    """
    path = Path(folder) / _JSON_NAME
    if not path.exists():
        raise UserError(f"{folder}: is not a run folder, it has no {_JSON_NAME}")
    report = read_json(path, "the report", kind="a report")
    if not isinstance(report, dict) or report.get("schema") != REPORT_SCHEMA:
        found = report.get("schema") if isinstance(report, dict) else None
        shown = repr(found)[:40]
        raise UserError(f"{path}: has report schema {shown}, this version of onnxq reads {REPORT_SCHEMA}")
    try:
        return checked_report(report)
    except ValueError as error:
        raise UserError(f"{path}: is not a report that onnxq wrote: {error}") from None


def render_html(report: Mapping[str, Any], run: str, figures: Mapping[str, bytes]) -> str:
    """One page that needs nothing else: styles, script and pictures are inside."""
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    picked = {pick["candidate"]: pick["name"] for pick in report["picks"]}
    others = sorted({m for c in report["candidates"] for m in c["metrics"]} - {report["metric"]})
    return page(
        title=f"onnxq: {report['model']}",
        report=report,
        run=run,
        picks=[
            {**pick, "of": by_name[pick["candidate"]], "command": _build_command(run, pick["candidate"])}
            for pick in report["picks"]
        ],
        picked=picked,
        front=set(report["front"]),
        others=others,
        figures=[(name, _caption(name), data_uri(figures[name])) for name in _ordered(figures)],
    )


@functools.lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """The template, compiled once: a run renders it after every candidate."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["metric"] = _formatted
    environment.filters["number"] = _float
    environment.filters["pretty"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["float_layers"] = lambda c: Candidate.from_json(c).float_layers
    environment.globals["label"] = _label
    return environment.get_template("template.html")


def _reading(context: jinja2.runtime.Context, name: str) -> Reading:
    return reading_in(context.get("report") or context.get("comparison") or {}, name)


@jinja2.pass_context
def _formatted(context: jinja2.runtime.Context, value: Any, name: str) -> str:
    return _reading(context, name).format(_float(value), table=True)


@jinja2.pass_context
def _label(context: jinja2.runtime.Context, name: str) -> str:
    return _reading(context, name).title


def page(**context: Any) -> str:
    """The template, filled in; everything is escaped."""
    return _template().render(**context)


def _build_command(run: str, candidate: str) -> str:
    return shlex.join(["onnxq", "build", run, candidate, "-o", f"{candidate}.onnx"])


def data_uri(data: bytes) -> str:
    """A PNG as text that an HTML page can hold."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _caption(name: str) -> str | None:
    """The sentence under a picture; None for what is no picture of a report."""
    kind, dash, mode = name.removesuffix(".png").partition("-")
    return _MODE_CAPTIONS.get(kind) if dash and mode else _CAPTIONS.get(name)


def _ordered(names: Iterable[str]) -> list[str]:
    """The run's own figures first, then those of each mode."""
    kinds = [*_FIGURE_NAMES, *_MODE_CAPTIONS]

    def place(name: str) -> tuple[int, str]:
        return kinds.index(name if name in kinds else name.partition("-")[0]), name

    return sorted((name for name in names if _caption(name) is not None), key=place)


def _stored_figures(folder: Path) -> dict[str, bytes]:
    found = [path.name for path in folder.glob("*.png") if path.is_file()]
    return {name: (folder / name).read_bytes() for name in _ordered(found)}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
