"""How a metric's values are read: direction, unit, wording. Plain data, so that a report can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnxq.documents import flag, number, one_of, optional, record, text
from passes.core.errors import UserError

__all__ = ["READING", "Reading"]

_MOST_DIGITS = 9


class Reading:
    """What must be known of a metric to compare, format and draw its values.

    Attributes:
        name: as it is written on the command line and in the journal.
        label: for axes and tables, without the unit; the name if empty.
        short: the label within a sentence; the label if empty.
        unit: behind the value. "%" means that values are fractions, which are shown in percent.
        digits: decimals within a sentence, one more in a table; None shows three significant digits.
        higher_is_better: False for errors.
        worst: the value that counts as nothing kept (for the hypervolume's reference point).
        best: the value that counts as everything kept.
        ceiling: values above count as this one, where a metric may be infinite.
        tolerance: the loss against float that people usually accept, in the metric's own unit; None where
            there is no such number.
        needs_labels: whether it compares with labels.
        needs_reference: whether it compares with the float model's own outputs.
    """

    name: str = ""
    label: str = ""
    short: str = ""
    unit: str = ""
    digits: int | None = None
    higher_is_better: bool = True
    worst: float = 0.0
    best: float = 1.0
    ceiling: float | None = None
    tolerance: float | None = None
    needs_labels: bool = False
    needs_reference: bool = False

    @property
    def percent(self) -> bool:
        """Whether values are fractions that are shown in percent."""
        return self.unit == "%"

    @property
    def scale(self) -> float:
        """From the metric's own unit to the one shown."""
        return 100.0 if self.percent else 1.0

    @property
    def title(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name

    @property
    def axis(self) -> str:
        """The label of an axis, unit included."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def within_sentence(self) -> str:
        """The name within a sentence: `top-1` of top-1 accuracy."""
        return self.short or self.title

    def cost(self, value: float) -> float:
        """The value to minimise (unit of the metric, sign turned where higher is better)."""
        if self.ceiling is not None:
            value = min(value, self.ceiling)
        return -value if self.higher_is_better else value

    def gap(self, value: float, reference: float) -> float:
        """How much worse `value` is than `reference`, in the metric's own unit; negative where better."""
        return self.cost(value) - self.cost(reference)

    def format(self, value: float | None, *, table: bool = False) -> str:
        """A value for a person: `91.2 %`, `34.1 dB`, `0.00213`; with one decimal more in a table."""
        if value is None or math.isnan(value):
            return "n/a"
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        return self._with_unit(self._number(value, table))

    def format_spread(self, value: float | None, stderr: float | None) -> str:
        """A value with its standard error, for a table: `91.20 ± 0.90 %`; without one the value alone."""
        if stderr is None or value is None or not math.isfinite(value):
            return self.format(value, table=True)
        return self._with_unit(f"{self._number(value, True)} ± {self._number(stderr, True)}")

    def format_difference(self, difference: float) -> str:
        """A difference of two values for a person: `1.0 points` of percent, `0.5 dB`."""
        return self.format(difference).replace(" %", " points") if self.percent else self.format(difference)

    def loss(self, value: float, reference: float, than: str) -> str:
        """What was lost against another model, which is called `than`: `1.2 points below float`."""
        if not self.percent:
            return f"{self.title} {self.format(value)}"
        gap = self.gap(value, reference)
        if abs(gap) < 5e-5:
            return f"same {self.title} as {than}"
        below = (gap > 0) == self.higher_is_better
        return f"{self.scale * abs(gap):.1f} points {'below' if below else 'above'} {than}"

    def check_goal(self, goal: float) -> None:
        """Raise UserError for a goal that no value of this metric can reach by its unit."""
        if self.percent and goal > 1:
            raise UserError(f"`metric_floor` {goal:g}: is a fraction here, as in 0.75 for 75 %")

    def to_json(self) -> dict[str, Any]:
        """Everything but the name, for a report, which names it."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_json(cls, name: str, document: Mapping[str, Any]) -> Reading:
        """The inverse of `to_json`: values can be read, none can be measured. Unknown fields are ignored."""
        made = Reading()
        made.name = name
        for field in _FIELDS:
            if field in document:
                setattr(made, field, document[field])
        return made

    def _number(self, value: float, table: bool) -> str:
        if self.digits is None:
            return f"{self.scale * value:.3g}"
        return f"{self.scale * value:.{self.digits + table}f}"

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}" if self.unit else number


_FLAGS = ("higher_is_better", "needs_labels", "needs_reference")
_SHAPES = {
    **dict.fromkeys(("label", "short", "unit"), text),
    "digits": optional(one_of(*range(_MOST_DIGITS + 1))),
    **dict.fromkeys(("worst", "best"), number),
    **dict.fromkeys(("ceiling", "tolerance"), optional(number)),
    **dict.fromkeys(_FLAGS, flag),
}
_FIELDS = tuple(_SHAPES)
READING = record({}, _SHAPES)
"""What `Reading.to_json` gives, in a document that anybody may have written."""
