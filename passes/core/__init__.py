"""The pass protocol, recipes of passes, notes and errors."""

from __future__ import annotations

__all__: list[str] = []
