"""The plan of each layer, where Q/DQ pairs stand, and the edit that puts them there."""

from __future__ import annotations

__all__: list[str] = []
