"""A device that models run on, as its string names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from passes.core.errors import UserError

__all__ = ["Device", "Limits"]


@dataclass(frozen=True)
class Limits:
    """How long each phase may take, in seconds, and how often one that fails is tried again."""

    compile: float = 900.0
    connect: float = 10.0
    upload: float = 120.0
    run: float = 120.0
    retries: int = 2
    backoff: float = 0.5


@dataclass(frozen=True)
class Device:
    """A place where models run.

    Attributes:
        text: the device string; what messages and reports call it.
        tool: the name of the tool that runs it (onnxq/runners/opening.py), as in `ort` or `tvm`.
        kind: the execution provider (`cpu`) or the target (`llvm`, `mali`), as written.
        host, port: of the RPC server or tracker; empty and 0 on this machine.
        options: everything behind the question mark but `target`.
    """

    text: str
    tool: str
    kind: str
    host: str = ""
    port: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def remote(self) -> bool:
        return bool(self.host)

    @property
    def key(self) -> str:
        """The pool of a tracker; empty where the server is addressed itself."""
        return self.options.get("key", "")

    @property
    def limits(self) -> Limits:
        given = {name: self.number(name) for name in ("compile", "connect", "upload", "run")}
        times = {name: value for name, value in given.items() if value is not None}
        retries = self.number("retries")
        return Limits(**times, **({} if retries is None else {"retries": int(retries)}))  # type: ignore[arg-type]

    def number(self, name: str) -> float | None:
        """A numeric option, None where it is not given.

        Raises:
            UserError: it is no number, or negative.
        """
        text = self.options.get(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise UserError(f"device {self.text}: {name}={text} is not a number of 0 or more")
        return value
