"""Rounding of weights by data: tasks, second order, learned, trellis."""

from __future__ import annotations

__all__: list[str] = []
