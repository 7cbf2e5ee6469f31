"""Values of samples as text, for the journal."""

from __future__ import annotations

import numpy as np

from onnxq.metrics.base import Values

__all__ = ["hits_from_text", "hits_to_text"]

_BYTES = 8


def hits_to_text(hits: Values) -> str:
    """Hexadecimal: one digit per four samples for truth values, else 16 digits (a float64) a sample."""
    if hits.dtype == np.bool_:
        return np.packbits(hits).tobytes().hex()
    return np.asarray(hits, "<f8").tobytes().hex()


def hits_from_text(text: str, samples: int) -> Values:
    """The inverse of `hits_to_text`; which of the two it is shows in the length."""
    data = bytes.fromhex(text)
    if samples and len(data) == _BYTES * samples:
        return np.frombuffer(data, "<f8").astype(np.float64)
    return np.unpackbits(np.frombuffer(data, np.uint8), count=samples).astype(np.bool_)
