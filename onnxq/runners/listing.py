"""What can be reached from here, and what each device can run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnx import parser

from onnxq.machine import default_threads
from onnxq.proof.feeds import made_up_feed
from onnxq.runners.agreement import refuse_disagreement
from onnxq.runners.opening import open_runner, parse_device, tool_of
from passes.core.errors import DeviceError, UserError
from passes.graph.model import Model

__all__ = ["Reach", "probe"]

_PROBES = {
    "float": """<ir_version: 8, opset_import: ["" : 13]> probe (float[1,4,8,8] x) => (float[1,8,8,8] y)
        <float[8,4,1,1] w = {WEIGHTS}>
        { c = Conv(x, w) y = Relu(c) }""",
    "int8": """<ir_version: 8, opset_import: ["" : 13]> probe (float[1,4,8,8] x) => (float[1,8,8,8] y)
        <float s = {0.05}, uint8 z = {128}, int8[8,4,1,1] w = {CODES}, float ws = {0.02}, int8 wz = {0}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(w, ws, wz)
          c = Conv(d, wd) r = Relu(c) q2 = QuantizeLinear(r, s, z) y = DequantizeLinear(q2, s, z) }""",
}


@dataclass(frozen=True)
class Reach:
    """One device as it was found.

    Attributes:
        runs: which of float and int8 (a Conv between Q/DQ pairs) it runs and computes rightly.
        problem: why it runs one of them or both not; empty where it runs both.
    """

    device: str
    what: str
    runs: tuple[str, ...]
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "runs": list(self.runs)}


def probe(text: str) -> Reach:
    """Run a small float and a small int8 model on a device and compare with the CPU."""
    runs: list[str] = []
    problems: list[str] = []
    try:
        runner = open_runner(text, default_threads())
    except UserError as error:
        return Reach(text, "", (), _without_name(error))
    try:
        for name in _PROBES:
            try:
                model = _probe_model(name)
                feed = made_up_feed(model)
                assert feed is not None
                program = runner.prepare(model)
                refuse_disagreement(runner, program, model, [feed])
                runs.append(name)
            except UserError as error:  # noqa: PERF203 - one probe's failure leaves the other
                problems.append(f"{name}: {_without_name(error)}")
                if isinstance(error, DeviceError) and error.phase == "connect":
                    return Reach(text, _what(text), (), _without_name(error))
    finally:
        runner.close()
    return Reach(text, _what(text), tuple(runs), "; ".join(problems))


def _what(text: str) -> str:
    device = parse_device(text)
    return tool_of(device).what(device)


def _without_name(error: UserError) -> str:
    return f"{error.phase}: {error.problem}" if isinstance(error, DeviceError) else str(error)


def _probe_model(name: str) -> Model:
    weights = ", ".join(str(round(0.1 * (i % 7 - 3), 1)) for i in range(32))
    codes = ", ".join(str(5 * (i % 7 - 3)) for i in range(32))
    text = _PROBES[name].replace("WEIGHTS", weights).replace("CODES", codes)
    return Model(parser.parse_model(text), f"the {name} probe")
