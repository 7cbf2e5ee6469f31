"""Every operator whose schema changed, upgraded: the same outputs in stock ONNX Runtime, or refused by name.

    python benchmarks/opset_sweep.py [--targets 13,14,19,21,27] [-k TEXT] [--verbose] [--peer]

One-op models come from two sources. (1) The node cases of onnx.backend.test, each at the first opset of
every version of its operators from 7 on at which the checker accepts it and ONNX Runtime runs it. (2)
opset_cases.py: modes, ratios, axes and types that those do not try. Each model is upgraded to each target
that is newer than it (27 is replaced by the newest that the installed ONNX Runtime quantizes); both files
run on the same random data in sessions without any option of ours. --peer judges onnx's own version
converter instead. Prints a markdown table by operator; exit code 1 if any answer was wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper, version_converter
from onnx.backend.test.loader import load_model_tests

from benchmarks.opset_cases import Case, hand_made
from passes.core.base import Context
from passes.core.errors import UnsupportedModelError, UserError
from passes.graph.model import Model, check
from passes.opset.runtime import newest_runtime_opset
from passes.opset.schemas import transitions
from passes.opset.upgrading import upgrade

OLDEST = 7
TARGETS = (13, 14, 19, 21, 27)
TOLERANCE = 1e-5
VERDICTS = ("same", "refused", "not run", "wrong")


@dataclass
class Tally:
    """What became of the upgrades of one operator."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


def _plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def backend(text: str = "") -> Iterator[Case]:
    """onnx's node cases, at the first opset of every version of their operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = sorted(
            (t for t in load_model_tests(kind="node") if text in t.name), key=lambda t: str(t.name)
        )
    newest = newest_runtime_opset()
    for test in tests:
        if test.model is None or not test.data_sets:
            continue
        model = test.model
        ops = {node.op_type for node in model.graph.node if not node.domain}
        arrays = [_plain(value) for value in test.data_sets[0][0]]
        names = [value.name for value in model.graph.input]
        feed = {
            name: np.asarray(value) if isinstance(value, np.generic) else value
            for name, value in zip(names, arrays, strict=False)
            if value is not None
        }
        current = Model(model).opset()
        starts = {
            schema.since_version for op in ops for pair in transitions(op, 0, newest) for schema in pair
        }
        for opset in sorted({max(start, OLDEST) for start in starts} | {current}):
            if not OLDEST <= opset <= min(current, newest):
                continue
            old = onnx.ModelProto()
            old.CopyFrom(model)
            for entry in old.opset_import:
                if not entry.domain:
                    entry.version = opset
            yield Case(f"{test.name} at {opset}", "+".join(sorted(ops)), old, feed)


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    """Outputs in a session without any option but silence."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(opened.run(None, feed))


def equal(wanted: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Equal in type, shape and, within `tolerance` of the largest value, in values; NaN equals NaN."""
    if isinstance(wanted, list):
        return len(wanted) == len(got) and all(equal(a, b) for a, b in zip(wanted, got, strict=True))
    if wanted is None or got is None:
        return wanted is got
    wanted, got = np.asarray(wanted), np.asarray(got)
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return False
    if wanted.dtype.kind not in "fc":
        return bool((wanted == got).all())
    finite = np.abs(wanted[np.isfinite(wanted)].astype(np.float64))
    limit = max(tolerance, 2 * float(np.finfo(wanted.dtype).eps)) * float(finite.max(initial=1e-30))
    return bool(np.allclose(got, wanted, rtol=0, atol=limit, equal_nan=True))


def _reproducible(case: Case) -> list[Any] | None:
    """The old model's outputs; None if the checker or ONNX Runtime refuses it, or if they are random."""
    try:
        first, again = run(case.model, case.feed), run(case.model, case.feed)
        for value, array in zip(case.model.graph.output, first, strict=True):
            tensor = value.type.tensor_type
            if value.type.HasField("tensor_type") and not tensor.HasField("shape"):  # the checker wants one
                tensor.shape.dim.extend(
                    onnx.TensorShapeProto.Dimension(dim_value=size) for size in array.shape
                )
        check(Model(case.model))
    except Exception:  # noqa: BLE001 - ONNX Runtime raises one class for each of its codes
        return None
    return first if equal(first, again, 0.0) else None


def ours(model: onnx.ModelProto, target: int) -> Model:
    """The model at that opset by `upgrade`."""
    return upgrade(Model(model, "case"), target, "the sweep", Context())


def peers(model: onnx.ModelProto, target: int) -> Model:
    """The model at that opset by onnx's version converter, with an IR version of that opset."""
    try:
        made = version_converter.convert_version(model, target)
    except Exception as error:  # noqa: BLE001 - the converter raises one class for each of its reasons
        raise UnsupportedModelError(" ".join(str(error).split())[:200]) from None
    made.ir_version = max(made.ir_version, helper.find_min_ir_version_for(made.opset_import, True))
    return Model(made, "case")


Converter = Callable[[onnx.ModelProto, int], Model]


def judge(case: Case, target: int, wanted: list[Any], convert: Converter = ours) -> tuple[str, str]:
    """(same, refused, not run or wrong; why) of one upgrade.

    not run: ONNX Runtime says that it has no kernel; a command that saves such a file says so and keeps none.
    """
    try:
        raised = convert(case.model, target)
    except UserError as error:
        return "refused", str(error)
    try:
        check(raised)
        got = run(raised.proto, case.feed)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises one class for each of its codes
        reason = " ".join(str(error).split())[:200]
        return "not run" if "NOT_IMPLEMENTED" in reason else "wrong", reason
    if equal(wanted, got):
        return "same", ""
    return "wrong", "other values"


def sweep(
    cases: Iterator[Case], targets: Sequence[int], convert: Converter = ours
) -> tuple[dict[str, Tally], int]:
    """Tallies by operator, and how many models there were."""
    tallies: dict[str, Tally] = {}
    models = 0
    for case in cases:
        opset = Model(case.model).opset()
        wanted = _reproducible(case)
        if wanted is None:
            continue
        models += 1
        tally = tallies.setdefault(case.op, Tally())
        for target in targets:
            if target > opset:
                verdict, why = judge(case, target, wanted, convert)
                tally.counts[verdict] += 1
                if verdict == "wrong":
                    tally.wrong.append(f"{case.name} -> {target}: {why}")
                if verdict in ("refused", "not run"):
                    tally.refused.add(f"{case.name} -> {target}: {verdict}: {why}")
    return tallies, models


def main() -> None:
    """Run the sweep and print its table."""
    ort.set_default_logger_severity(4)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="Opsets to upgrade to.")
    parser.add_argument("-k", default="", help="Only cases whose name has this text.")
    parser.add_argument("--verbose", action="store_true", help="Print each refusal too.")
    parser.add_argument("--peer", action="store_true", help="Judge onnx's own version converter.")
    options = parser.parse_args()
    targets = sorted({min(int(word), newest_runtime_opset()) for word in options.targets.split(",")})
    cases = [case for case in hand_made() if options.k in case.name]
    both = (case for source in (cases, backend(options.k)) for case in source)
    tallies, models = sweep(both, targets, peers if options.peer else ours)
    print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, targets {targets}\n")
    print("| operator | " + " | ".join(VERDICTS) + " |\n" + "| --- " * (len(VERDICTS) + 1) + "|")
    total: Counter[str] = Counter()
    for op, tally in sorted(tallies.items()):
        total.update(tally.counts)
        if tally.counts:
            print(f"| {op} | " + " | ".join(str(tally.counts[verdict]) for verdict in VERDICTS) + " |")
    print(f"\n{models} models: " + ", ".join(f"{total[verdict]} {verdict}" for verdict in VERDICTS))
    for tally in tallies.values():
        for line in (*tally.wrong, *(sorted(tally.refused) if options.verbose else ())):
            print(line)
    sys.exit(1 if total["wrong"] else 0)


if __name__ == "__main__":
    main()
