"""The lines that a tune prints where stderr is no terminal, and the bar where it is."""

from __future__ import annotations

import io
import sys

import pytest

from onnxq.cli.progress import Progress
from onnxq.tuning import Event


def lines(events: list[Event], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with Progress() as progress:
        for event in events:
            progress(event)
    return capsys.readouterr().err.splitlines()


def test_a_phase_prints_its_first_and_its_last_event(capsys: pytest.CaptureFixture[str]) -> None:
    events = [Event("rank", done, 50, "layer errors, static") for done in range(51)]
    assert lines(events, capsys) == [
        "analysing 0/50 layer errors, static",
        "analysing 50/50 layer errors, static",
    ]


def test_an_unknown_total_is_not_shown_and_does_not_print_every_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = [Event("measure", done, 0, f"weights-{done:03d}", "best so far") for done in range(40)]
    assert lines(events, capsys) == ["measuring 0 weights-000, best so far"]


def test_the_bar_takes_an_unknown_total(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress() as progress:
        for done in range(3):
            progress(Event("measure", done, 0, f"weights-{done:03d}", "best so far"))
    assert "measuring" in terminal.getvalue()
    assert "2/0" not in terminal.getvalue()
