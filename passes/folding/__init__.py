"""What simplify and fold_batchnorm fold, one kind a file."""

from __future__ import annotations

__all__: list[str] = []
