"""How much a file may unpack to. Sizes are compared as declared, before anything is unpacked.

A file may unpack to 4 GiB, or to eight times its own size if that is more, so that an honest archive of any
size is read and a small file that fills the memory or the disk is not. ONNXQ_UNPACK_LIMIT changes the 4 GiB.
"""

from __future__ import annotations

import os
import re

from passes.core.errors import DataError

__all__ = ["LIMIT_VARIABLE", "check_unpacked", "unpack_limit"]

LIMIT_VARIABLE = "ONNXQ_UNPACK_LIMIT"
_DEFAULT = 4 * 2**30
_EXPANSION = 8
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def unpack_limit() -> int:
    """Bytes that a file may always unpack to.

    Raises:
        DataError: the environment variable is not a size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip().lower()
    if not text:
        return _DEFAULT
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]i?b)?", text)
    if match is None:
        raise DataError(f"{LIMIT_VARIABLE}={text[:40]}: is not a size; write 8GB, 512MiB or bytes.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def check_unpacked(origin: str, unpacked: int, packed: int = 0) -> None:
    """Raise DataError where a file of `packed` bytes declares more unpacked bytes than it may have."""
    allowed = max(unpack_limit(), _EXPANSION * packed)
    if unpacked > allowed:
        raise DataError(
            f"{origin}: it would unpack to {_shown(unpacked)}, more than the {_shown(allowed)} allowed; "
            f"if that is right, set {LIMIT_VARIABLE}={_shown(unpacked, round_up=True)}."
        )


def _shown(size: int, *, round_up: bool = False) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{-(-size // factor)}{unit}" if round_up else f"{size / factor:.1f} {unit}"
    return str(size) if round_up else f"{size} bytes"
