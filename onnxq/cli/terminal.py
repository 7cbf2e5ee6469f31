"""How things are shown: tables on stdout, remarks on stderr, numbers as people write them.

Names of files, nodes and tensors come from outside and may hold anything. Everything that reaches the
terminal goes through `say`, `warn`, `remark`, `table` or `print_json`, which escape control characters.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from onnxq.cli.flags import as_flags

__all__ = [
    "count",
    "megabytes",
    "print_json",
    "printable",
    "ratio",
    "remark",
    "say",
    "table",
    "warn",
    "write_text",
]

# Control characters, the marks that turn the direction of text, separators of lines, and lone surrogates.
_HIDDEN = r"\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
_UNPRINTABLE = re.compile(rf"[\x00-\x1f{_HIDDEN}]")
_UNPRINTABLE_IN_JSON = re.compile(f"[{_HIDDEN}]")


def printable(text: str) -> str:
    """The text in one line, with every character that a terminal would obey or hide as an escape: `\\x1b`."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    )


def say(text: str = "", *, label: str = "", err: bool = False) -> None:
    """One line on stdout (or stderr), behind a label in bold; control characters in both are escaped."""
    click.echo((click.style(printable(label), bold=True) if label else "") + printable(text), err=err)


def write_text(text: str) -> None:
    """A file's text on stdout, as it is; for a terminal, control characters except line ends are escaped."""
    shown = "\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text
    click.echo(shown, nl=False)


def megabytes(size: float) -> str:
    """`812 B`, `12.3 kB`, `4.56 MB`."""
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.2f} MB"


def count(number: int | None) -> str:
    """`812`, `12.3 k`, `4.56 M`, `1.2 G`; `?` for an unknown one."""
    if number is None:
        return "?"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return str(number)


def ratio(size: float, before: float) -> str:
    """`3.9x smaller`, `1.2x larger`."""
    return f"{before / size:.1f}x smaller" if size <= before else f"{size / before:.1f}x larger"


def print_json(document: Any) -> None:
    """Plain JSON on stdout; what JSON lacks (nan, inf) becomes text."""
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    # They are inside of texts, where JSON's own escapes mean the same; json has escaped the others.
    click.echo(_UNPRINTABLE_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def remark(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    say(as_flags(text), err=True)


def warn(text: str) -> None:
    click.echo(click.style("Warning: ", fg="yellow") + printable(as_flags(text)), err=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    title: str | None = None,
) -> None:
    """A plain table. right: columns of numbers. Without a terminal nothing is cut, for grep."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    numbers = set(right)
    held = [[printable(str(cell)) for cell in row] for row in rows]
    for index, name in enumerate(columns):
        shown.add_column(
            name, justify="right" if index in numbers else "left", no_wrap=index in numbers, overflow="fold"
        )
    for row in held:
        shown.add_row(*(Text(cell) for cell in row))
    if sys.stdout.isatty():
        Console(highlight=False).print(shown)
        return
    widths = [max(len(cell) for cell in column) for column in zip(columns, *held, strict=True)]
    Console(highlight=False, width=sum(widths) + 4 * len(widths) + 8, color_system=None).print(shown)
