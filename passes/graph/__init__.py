"""The model, the boundary to graphsurgeon, editing, inference and layers."""

from __future__ import annotations

__all__: list[str] = []
