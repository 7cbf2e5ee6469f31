"""Device strings: `ort:cpu`, `ort:openvino?precision=f32`, `tvm:llvm`, `tvm://phone:9090?target=mali`, ...

ort:PROVIDER[?option=value&...]          ONNX Runtime with one execution provider
tvm:TARGET[?option=value&...]            TVM on this machine
tvm://HOST:PORT?target=TARGET&...        TVM on a machine that runs an RPC server
tvm://HOST:PORT?target=TARGET&key=KEY    the same, of the pool KEY of the tracker at HOST:PORT
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

from passes.core.errors import UserError

__all__ = ["Device", "Limits", "parse_device"]

_ORT_OPTIONS = ("threads", "level", "precision", "library", "name", "tolerance")
_TVM_OPTIONS = ("cores", "mcpu", "schedule", "tune-trials", "tolerance", "ndk", "load", "compile", "run")
_RPC_OPTIONS = (*_TVM_OPTIONS, "target", "key", "connect", "upload", "retries")
# Options of an execution provider itself are passed on under this prefix: `ep.device_id=1`.
PROVIDER_PREFIX = "ep."


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
        tool: `ort` or `tvm`.
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


def parse_device(text: str) -> Device:
    """The device that a text names.

    Raises:
        UserError: it is none, or an option is unknown; says what there is.
    """
    tool, colon, rest = text.strip().partition(":")
    if not colon or tool not in ("ort", "tvm"):
        raise UserError(
            f"device {text!r}: is not of the form ort:PROVIDER, tvm:TARGET or tvm://HOST:PORT?target=TARGET "
            "(onnxq devices lists what is here)"
        )
    place, _, query = rest.partition("?")
    options = _options(text, query)
    host, port = "", 0
    if place.startswith("//"):
        if tool == "ort":
            raise UserError(
                f"device {text!r}: ONNX Runtime runs on this machine only; remote devices are tvm://"
            )
        host, port = _address(text, place[2:])
        kind = options.pop("target", "")
        if not kind:
            raise UserError(f"device {text!r}: say what it compiles for, as in ?target=llvm or ?target=mali")
    else:
        kind = place
    if not kind:
        raise UserError(f"device {text!r}: names no {'execution provider' if tool == 'ort' else 'target'}")
    allowed = _ORT_OPTIONS if tool == "ort" else _RPC_OPTIONS if host else _TVM_OPTIONS
    _check(text, options, allowed, provider=tool == "ort")
    device = Device(text.strip(), tool, kind, host, port, options)
    for name in (
        "threads",
        "cores",
        "tune-trials",
        "tolerance",
        "compile",
        "connect",
        "upload",
        "run",
        "retries",
    ):
        device.number(name)
    return device


def _options(text: str, query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise UserError(
            f"device {text!r}: what follows the question mark is not name=value&name=value; "
            f"special characters are written as in a URL ({quote('#')} for #)"
        ) from None


def _address(text: str, place: str) -> tuple[str, int]:
    host, _, digits = place.rstrip("/").rpartition(":")
    if not host or not digits.isdigit() or not 0 < int(digits) < 65536:
        raise UserError(f"device {text!r}: needs an address like 192.168.1.7:9090 after tvm://")
    return host.strip("[]"), int(digits)


def _check(text: str, options: Iterable[str], allowed: Iterable[str], *, provider: bool) -> None:
    for name in options:
        if name in allowed or (provider and name.startswith(PROVIDER_PREFIX)):
            continue
        near = difflib.get_close_matches(name, list(allowed), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(allowed))}"
        raise UserError(f"device {text!r}: unknown option {name!r}{hint}")
