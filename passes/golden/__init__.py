"""Canonical texts of models, which tests compare."""

from __future__ import annotations

__all__: list[str] = []
