"""The table of tools, and from a device string to its device and its runner.

ort:PROVIDER[?option=value&...]          ONNX Runtime with one execution provider
tvm:TARGET[?option=value&...]            TVM on this machine
tvm://HOST:PORT?target=TARGET&...        TVM on a machine that runs an RPC server
tvm://HOST:PORT?target=TARGET&key=KEY    the same, of the pool KEY of the tracker at HOST:PORT
NAME:KIND[?option=value&...]             a tool that an installed package has registered (`onnxq.runners`)
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote

from onnxq.plugins import import_object, registered
from onnxq.runners.base import Runner
from onnxq.runners.device import Device
from onnxq.runners.ort import Ort
from onnxq.runners.tool import Tool
from onnxq.runners.tvm import Tvm
from passes.core.errors import UserError
from passes.core.fields import has_words

__all__ = ["TOOLS", "local_devices", "open_runner", "parse_device", "tool_of", "tools"]

TOOLS: dict[str, Tool] = {tool.name: tool for tool in (Ort(), Tvm())}
"""Name -> tool, of those that come with onnxq. A new one is a file of its own and a place here."""

GROUP = "onnxq.runners"


def tools() -> Iterator[Tool]:
    """The tools of the table, then those of installed packages, as far as they can be imported."""
    yield from TOOLS.values()
    for name in _registered():
        with contextlib.suppress(UserError):
            yield _foreign(name)


def local_devices() -> list[str]:
    """Device strings of this machine, of every tool; of one that cannot be imported its name alone."""
    found = [text for tool in tools() for text in tool.local()]
    working = {tool.name for tool in tools()}
    return found + [f"{name}:" for name in _registered() if name not in working]


def _registered() -> list[str]:
    return sorted(registered(GROUP).keys() - TOOLS.keys())


def tool_of(device: Device) -> Tool:
    """The tool that runs a device."""
    return TOOLS.get(device.tool) or _foreign(device.tool)


def open_runner(text: str, threads: int | None = None) -> Runner:
    """The runner of a device string; nothing is connected yet.

    threads: where the string names no number; None leaves it to the tool.

    Raises:
        UserError: the string is malformed.
        DeviceError: the tool or the execution provider is not here.
    """
    device = parse_device(text)
    return tool_of(device).open(device, threads)


def parse_device(text: str) -> Device:
    """The device that a text names.

    Raises:
        UserError: it is none, or an option is unknown; says what there is.
    """
    name, colon, rest = text.strip().partition(":")
    if not colon or name not in TOOLS.keys() | registered(GROUP).keys():
        forms = [form for tool in TOOLS.values() for form in tool.forms]
        forms += [f"{other}:..." for other in _registered()]
        raise UserError(
            f"device {text!r}: is not of the form {', '.join(forms[:-1])} or {forms[-1]} "
            "(onnxq devices lists what is here)"
        )
    tool = TOOLS.get(name) or _foreign(name)
    place, _, query = rest.partition("?")
    options = _options(text, query)
    host, port = "", 0
    if place.startswith("//"):
        if not tool.remote:
            there = " and ".join(f"{each.name}://" for each in TOOLS.values() if each.remote)
            raise UserError(
                f"device {text!r}: {tool.title} runs on this machine only; remote devices are {there}"
            )
        host, port = _address(text, name, place[2:])
        kind = options.pop("target", "")
        if not kind:
            raise UserError(f"device {text!r}: say what it compiles for, as in ?target=llvm or ?target=mali")
    else:
        kind = place
    if not kind:
        raise UserError(f"device {text!r}: names no {tool.kind}")
    _check(text, options, tool, remote=bool(host))
    device = Device(text.strip(), name, kind, host, port, options)
    for number in (*tool.numbers, *tool.remote_numbers):
        device.number(number)
    return device


def _options(text: str, query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise UserError(
            f"device {text!r}: what follows the question mark is not name=value&name=value; "
            f"special characters are written as in a URL ({quote('#')} for #)"
        ) from None


def _address(text: str, name: str, place: str) -> tuple[str, int]:
    host, _, digits = place.rstrip("/").rpartition(":")
    if not host or not digits.isdigit() or not 0 < int(digits) < 65536:
        raise UserError(f"device {text!r}: needs an address like 192.168.1.7:9090 after {name}://")
    return host.strip("[]"), int(digits)


def _check(text: str, options: dict[str, str], tool: Tool, *, remote: bool) -> None:
    """Raises UserError for an option that the tool's devices do not have."""
    allowed = [*tool.words, *tool.numbers]
    allowed += [*tool.remote_words, *tool.remote_numbers] if remote else []
    for name in options:
        if name in allowed or (tool.prefix and name.startswith(tool.prefix)):
            continue
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(allowed))}"
        raise UserError(f"device {text!r}: unknown option {name!r}{hint}")


def _foreign(name: str) -> Tool:
    """The tool that an installed package has registered under a name."""
    kind = import_object(registered(GROUP)[name].value)
    if not (isinstance(kind, type) and issubclass(kind, Tool) and has_words(kind, "name", "title")):
        raise UserError(
            f"device {name}: the package that registers it gives no class that derives from "
            "onnxq.runners.Tool and says its name and title"
        )
    tool: Tool = kind()
    if tool.name != name:
        raise UserError(f"device {name}: the package that registers it calls it {tool.name!r}")
    return tool
