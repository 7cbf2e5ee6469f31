"""The table of metrics, and from what a user wrote to the metric that is meant.

A metric is a name of the table, a name under which an installed package has registered one (entry points of
the group `onnxq.metrics`), the user's own class as `module:Class`, or an object.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from onnxq.files import canonical_json
from onnxq.metrics.agreement import Agreement
from onnxq.metrics.base import Metric
from onnxq.metrics.cosine import Cosine
from onnxq.metrics.foreign import Foreign
from onnxq.metrics.mse import MSE
from onnxq.metrics.reading import READING, Reading
from onnxq.metrics.sqnr import SQNR
from onnxq.metrics.top1 import Top1
from onnxq.metrics.top5 import Top5
from onnxq.plugins import import_object, registered
from passes.core.errors import DataError, UserError

__all__ = [
    "METRICS",
    "default_metric",
    "headline_of",
    "is_own",
    "known_metrics",
    "metric_text",
    "metrics_beside",
    "open_metric",
    "reading_of",
]

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (Top1(), Top5(), Agreement(), SQNR(), MSE(), Cosine())
}
"""Name -> metric, of those that come with onnxq. A new one is a file of its own and a place here."""

GROUP = "onnxq.metrics"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


def known_metrics() -> list[str]:
    """Names of the table, then of what installed packages register."""
    return list(dict.fromkeys([*METRICS, *sorted(registered(GROUP))]))


def default_metric(labelled: bool) -> Metric:
    """The metric where none was asked for: accuracy for labelled data, agreement with float otherwise."""
    return METRICS["top1" if labelled else "agreement"]


def open_metric(metric: str | object, *, labelled: bool = True) -> Metric:
    """The metric that is meant; an empty text is the default for data that is, or is not, `labelled`.

    `module:Class` and names of installed packages import, and so run, other people's code: a text that a run
    folder holds must never come here (see `reading_of`).

    Raises:
        UserError: there is none of that name, or what was found is not a metric.
    """
    if not isinstance(metric, str):
        return _checked(metric)
    if not metric:
        return default_metric(labelled)
    if metric in METRICS:
        return METRICS[metric]
    if ":" in metric:
        return _checked(import_object(metric), metric)
    entry = registered(GROUP).get(metric)
    if entry is None:
        raise UserError(f"unknown metric {metric!r}{_near(metric)}")
    found = _checked(import_object(entry.value), metric)
    if found.name != metric:
        raise UserError(f"metric {metric!r}: the package that registers it calls it {found.name!r}")
    return found


def reading_of(metric: str | Reading) -> Reading:
    """How a metric's values are read, of one that comes with onnxq or is given; runs nobody's code.

    Raises:
        UserError: onnxq has no metric of that name.
    """
    if isinstance(metric, Reading):
        return metric
    try:
        return METRICS[metric]
    except KeyError:
        raise UserError(f"unknown metric {metric!r}{_near(metric)}") from None


def metrics_beside(metric: Metric, *, labelled: bool, reference: bool) -> tuple[Metric, ...]:
    """The metrics that are measured for one that was asked for: itself, and what is reported beside it.

    Args:
        labelled: whether the data have labels. reference: whether there is a float model to compare with.

    Raises:
        DataError: the metric itself cannot be measured so.
    """
    if metric.needs_labels and not labelled:
        raise DataError(f"metric {metric.name}: needs labels, and the data have none")
    if metric.needs_reference and not reference:
        raise DataError(f"metric {metric.name}: compares with the float model; give that as the reference")
    beside = [metric if name == metric.name else METRICS[name] for name in metric.beside]
    found = beside if metric.name in metric.beside else [metric, *beside]
    return tuple(
        each
        for each in found
        if (labelled or not each.needs_labels) and (reference or not each.needs_reference)
    )


def headline_of(metrics: Sequence[Metric]) -> Metric | None:
    """The metric by whose samples candidates race: the first that can; None where none can."""
    return next((metric for metric in metrics if metric.races), None)


def is_own(metric: Metric) -> bool:
    """Whether it comes with onnxq, and not from a package or from the user."""
    return type(metric) is type(METRICS.get(metric.name))


def metric_text(metric: str | object) -> str:
    """What was asked for as text, for a configuration and a fingerprint; options of an object are in it."""
    if isinstance(metric, str):
        return metric
    held = metric.held if isinstance(metric, Foreign) else metric
    kind = held if isinstance(held, type) else type(held)
    if kind in {type(each) for each in METRICS.values()}:
        return str(getattr(kind, "name", ""))
    own = {} if isinstance(held, type) else vars(held)
    options = {name: _plain(value) for name, value in own.items() if not name.startswith("_")}
    return f"{kind.__module__}:{kind.__qualname__}" + (f" {canonical_json(options)}" if options else "")


def _checked(found: Any, spec: str = "") -> Metric:
    """An object, or a class without arguments, as a metric.

    Raises:
        UserError: it is not a metric, or says something of itself that cannot be.
    """
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            whose = spec or found.__name__
            raise UserError(f"metric {whose}: cannot be made without arguments ({error})") from None
    metric = found if isinstance(found, Metric) else Foreign(found)
    problem = _problem(metric)
    if problem:
        raise UserError(f"metric {spec or metric.name or type(metric).__name__}: {problem}")
    return metric


def _problem(metric: Metric) -> str:
    """What is wrong with what a metric says of itself; empty where nothing is."""
    if not _NAME.fullmatch(metric.name):
        return f"its name {metric.name!r} is not one of letters, digits, '_', '-' and '.'"
    held = METRICS.get(metric.name)
    if held is not None and type(held) is not type(metric):
        return f"its name {metric.name!r} is that of one of onnxq's own metrics; give it another"
    try:
        READING(metric.to_json(), "")
    except ValueError as error:
        return str(error)
    if metric.gap(metric.worst, metric.best) <= 0:
        where = "above" if metric.higher_is_better else "below"
        return f"its best value {metric.best:g} must be {where} its worst, {metric.worst:g}"
    unknown = next((name for name in metric.beside if name != metric.name and name not in METRICS), None)
    return f"{unknown!r} in its beside is not one of {', '.join(METRICS)}" if unknown is not None else ""


def _plain(value: Any) -> Any:
    """As JSON has it, or as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _near(name: str) -> str:
    known = known_metrics()
    near = difflib.get_close_matches(name, known, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{suggestion} there are {', '.join(known)}, and module:Class for one of your own"
