"""What the records of a journal look like, by kind: a journal is data, and whoever wrote it, nothing in it
is believed before it is checked."""

from __future__ import annotations

from typing import Any

from onnxq.documents import Shape, count, each, number, optional, real, record, row, table, text
from onnxq.search.candidate import CANDIDATE, LATENCY

__all__ = ["check_record"]


def _hexadecimal(value: Any, where: str) -> None:
    text(value, where)
    bytes.fromhex(value)


_KINDS: dict[str, Shape] = {
    "candidate": CANDIDATE,
    "scored": CANDIDATE,
    "confirmed": record({"values": table(real), "stderr": table(number)}),
    "ranges": table(row(number, number)),
    "hits": _hexadecimal,
    "latency": LATENCY,
    "errors": each(
        record(
            {"layer": text, "op": text},
            dict.fromkeys(("qdq", "xmodel", "score"), optional(number)),
            closed=True,
        )
    ),
    "sensitivity": record(
        dict.fromkeys(("mse", "stderr", "kl", "agreement"), number) | {"samples": count},
        {"sqnr": optional(number)},
        closed=True,
    ),
    "value": number,
    "walk": each(row(count, count, count, number, number)),
}


def check_record(kind: str, payload: Any) -> None:
    """Raise ValueError for a payload that no version of onnxq with this schema has written."""
    shape = _KINDS.get(kind)
    if shape is not None:
        shape(payload, kind)
