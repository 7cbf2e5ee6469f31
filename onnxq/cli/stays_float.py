"""One line on what stays float in a written file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnxq.cli.terminal import megabytes
from onnxq.float_share import SMALL, FloatWeight

__all__ = ["float_share_text"]


def _summed(weights: Iterable[FloatWeight]) -> list[tuple[str, int]]:
    """(what, bytes) by layer kind and node, largest first."""
    groups: dict[tuple[str, str, str], list[FloatWeight]] = {}
    for weight in weights:
        subject = "" if weight.kind in ("layer", SMALL) else weight.node
        groups.setdefault((weight.kind, subject, weight.place), []).append(weight)
    return sorted(
        ((_label(members), sum(weight.bytes for weight in members)) for members in groups.values()),
        key=lambda entry: -entry[1],
    )


def _label(members: Sequence[FloatWeight]) -> str:
    first = members[0]
    where = f" in '{first.place}'" if first.place else ""
    kinds = sorted({weight.dtype for weight in members} - {"float32"})
    where += f" in {', '.join(kinds)}" if kinds else ""
    nodes = {weight.node for weight in members}
    if first.kind == SMALL:
        return f"{len(members)} biases and factors{where}"
    if len(nodes) > 1:
        return f"{len(nodes)} {first.kind}s{where}, first '{first.node}'"
    return f"{first.kind} '{first.node}'{where}"


def float_share_text(weights: Sequence[FloatWeight], size: int, shown: int = 4) -> str:
    """One line on what stays float of a file of `size` bytes; empty where biases and the like alone do."""
    if all(weight.kind == SMALL for weight in weights):
        return ""
    groups = _summed(weights)
    total = sum(weight.bytes for weight in weights)
    listed = [f"{what} ({megabytes(count)})" for what, count in groups[:shown]]
    rest = sum(count for _, count in groups[shown:])
    listed += [f"{len(groups) - shown} more ({megabytes(rest)})"] * (len(groups) > shown)
    return f"{megabytes(total)} of {megabytes(size)} stay float: {', '.join(listed)}"
