"""Whether a device computes what ONNX Runtime's CPU provider computes; one that does not is refused.

The measure is the relative distance of all outputs, |device - reference| / |reference| (Euclidean), over a
few samples. Float models must agree within TOLERANCE_FLOAT: a device that computes in bfloat16 does not,
and is told apart from one that computes in float32. Quantized ones legitimately differ by steps of
quantization that fall to the other side of a rounding, and are held to TOLERANCE_QUANTIZED, which garbage
does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.runners.base import Array, Feed, Program, Runner
from onnxq.runners.opening import parse_device
from onnxq.runners.ort import OrtRunner
from passes.core.errors import DeviceError
from passes.graph.model import Model

__all__ = ["TOLERANCE_FLOAT", "TOLERANCE_QUANTIZED", "distance", "reference_outputs", "refuse_disagreement"]

TOLERANCE_FLOAT = 1e-3
TOLERANCE_QUANTIZED = 0.1


def distance(outputs: Sequence[Array], expected: Sequence[Array]) -> float:
    """Relative Euclidean distance over all outputs; infinite where they are not finite or not of equal
    shapes.
    """
    if [output.shape for output in outputs] != [each.shape for each in expected]:
        return float("inf")
    difference, norm = 0.0, 0.0
    for output, each in zip(outputs, expected, strict=True):
        ours, theirs = np.asarray(output, np.float64), np.asarray(each, np.float64)
        if not np.isfinite(ours[np.isfinite(theirs)]).all():
            return float("inf")
        held = np.isfinite(theirs)
        difference += float(np.sum((ours[held] - theirs[held]) ** 2))
        norm += float(np.sum(theirs[held] ** 2))
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))


def reference_outputs(model: Model, feeds: Sequence[Feed]) -> list[list[Array]]:
    """What ONNX Runtime's CPU provider makes of each feed."""
    program = OrtRunner(parse_device("ort:cpu"), threads=1).prepare(model)
    return [program.run(feed) for feed in feeds]


def refuse_disagreement(
    runner: Runner,
    program: Program,
    model: Model,
    feeds: Sequence[Feed],
    expected: Sequence[Sequence[Array]] | None = None,
) -> float:
    """The relative distance between the device's outputs and those of the CPU.

    expected: the CPU's outputs, where they are known.

    Raises:
        DeviceError: it is above the tolerance (`tolerance=` in the device string, else by whether
            activations are quantized), or the device failed.
    """
    known = reference_outputs(model, feeds) if expected is None else expected
    worst = max(distance(program.run(feed), each) for feed, each in zip(feeds, known, strict=True))
    quantized = any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in model.proto.graph.node
    )
    given = parse_device(runner.name).number("tolerance")
    allowed = given if given is not None else TOLERANCE_QUANTIZED if quantized else TOLERANCE_FLOAT
    if not worst <= allowed:
        raise DeviceError(
            runner.name,
            "compare",
            f"refused: its outputs for {model.name} are {worst:.3g} (relative) away from ONNX Runtime's "
            f"on the CPU, where at most {allowed:g} is allowed; it computes something else, so its speed "
            "means nothing (tolerance=... in the device string allows more)",
            lasting=True,
        )
    return worst
