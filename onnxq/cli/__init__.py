"""The command line: one file per group of commands, each of them imported when its command runs."""

from __future__ import annotations

from onnxq.cli.app import cli, main

__all__ = ["cli", "main"]
