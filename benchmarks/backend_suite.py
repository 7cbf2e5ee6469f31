"""A peer's tests: every model of onnx.backend.test that ONNX Runtime passes, before and after our passes.

    python benchmarks/backend_suite.py [--kind node ...] [-k TEXT] [--sample N --seed S]

For each model that ONNX Runtime loads, runs and gets right by the test's own tolerance, `simplify`,
`fold_batchnorm` and both in a row must keep: the outputs (equal bits, or within 1e-5 of the largest
value; NaN equals NaN), the inputs and outputs the file declares, and the verdict of the full ONNX checker.
Prints a markdown table; exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from passes.core.base import Context, Pass
from passes.core.errors import GraphError, UserError
from passes.fold_batchnorm import FoldBatchNorm
from passes.graph.model import Model, check
from passes.simplify import Simplify

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
RECIPES: dict[str, Pass] = {
    "simplify": Simplify(),
    "fold_batchnorm": FoldBatchNorm(),
    "simplify, fold_batchnorm": Simplify() | FoldBatchNorm(),
}
LIGHT = Path(onnx.__file__).parent.parent  # the urls of "real" cases start with onnx/backend/test/data/light
TOLERANCE = 1e-5


@dataclass
class Case:
    """One model with its data sets (inputs, expected outputs)."""

    name: str
    kind: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


@dataclass
class Outcome:
    """What became of the cases of one kind."""

    tested: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    modified: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    content = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _folder_data(model: onnx.ModelProto, folder: Path) -> list[tuple[list[Any], list[Any]]]:
    data = []
    for part in sorted(folder.glob("test_data_set*")):
        inputs, outputs = len(list(part.glob("input_*.pb"))), len(list(part.glob("output_*.pb")))
        data.append(
            (
                [_read(part / f"input_{i}.pb", model.graph.input[i].type) for i in range(inputs)],
                [_read(part / f"output_{i}.pb", model.graph.output[i].type) for i in range(outputs)],
            )
        )
    return data


def _light_data(model: onnx.ModelProto, path: Path) -> list[tuple[list[Any], list[Any]]]:
    """Inputs as the peer's runner makes them; expected outputs lie beside the model."""
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name not in held:
            shape = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
            count = int(np.prod(shape))
            inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    outputs = [
        _read(path.with_name(f"{path.stem}_output_{index}.pb"), value.type)
        for index, value in enumerate(model.graph.output)
    ]
    return [(inputs, outputs)]


def load_case(test: Any) -> Case:
    """A case of the peer's loader with its model and data in memory."""
    if test.model is not None:
        data = [([_plain(v) for v in given], [_plain(v) for v in wanted]) for given, wanted in test.data_sets]
        return Case(test.name, test.kind, test.model, data, test.rtol, test.atol)
    if test.url is not None:
        path = LIGHT / test.url
        model = onnx.load(path)
        return Case(test.name, test.kind, model, _light_data(model, path), test.rtol, test.atol)
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    return Case(test.name, test.kind, model, _folder_data(model, folder), test.rtol, test.atol)


def cases(kind: str, text: str = "", sample: int = 0, seed: int = 0) -> Iterator[Case]:
    """Cases of one kind, by name; a seeded sample of them where `sample` is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer computes its expectations with overflows and all
        tests = sorted((t for t in load_model_tests(kind=kind) if text in t.name), key=lambda t: str(t.name))
    if sample and len(tests) > sample:
        tests = sorted(random.Random(seed).sample(tests, sample), key=lambda t: str(t.name))
    for test in tests:
        yield load_case(test)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of the model in ONNX Runtime."""
    opened = session(model)
    names = [value.name for value in opened.get_inputs()]
    # Some cases give a scalar as numpy's scalar type, which ONNX Runtime does not take.
    given = [np.asarray(value) if isinstance(value, np.generic) else value for value in inputs]
    feeds = {name: value for name, value in zip(names, given, strict=False) if value is not None}
    return list(opened.run(None, feeds))


def differs(wanted: Any, got: Any, rtol: float, atol: float) -> str:
    """Why two outputs differ; "" where they do not. Sequences, optionals and strings included."""
    if wanted is None or got is None:
        return "" if wanted is got else "one of them is None"
    if isinstance(wanted, list | tuple) or isinstance(got, list | tuple):
        if not isinstance(got, list | tuple) or len(wanted) != len(got):
            return "lengths differ"
        return next(filter(None, (differs(a, b, rtol, atol) for a, b in zip(wanted, got, strict=True))), "")
    a, b = np.asarray(wanted), np.asarray(got)
    if a.shape != b.shape:
        return f"shape {b.shape}, not {a.shape}"
    if a.dtype.kind in "OUS" or b.dtype.kind in "OUS":
        return "" if (a.astype(str) == b.astype(str)).all() else "strings differ"
    if a.dtype != b.dtype:
        return f"dtype {b.dtype}, not {a.dtype}"
    if a.tobytes() == b.tobytes():
        return ""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    if np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        return f"largest difference {np.nanmax(np.abs(x - y)):g}"


def _largest(value: Any) -> float:
    if isinstance(value, list | tuple):
        return max((_largest(item) for item in value), default=0.0)
    array = np.asarray(value) if value is not None else np.empty(0)
    if array.dtype.kind not in "fiu":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def reason_of(error: BaseException) -> str:
    """ONNX Runtime's refusal as a group."""
    text = str(error)
    for pattern, group in (
        (r"NOT_IMPLEMENTED|Could not find an implementation", "no kernel"),
        (r"is not a registered function/op|No Op registered|No opset import", "operator unknown to it"),
        (r"Numpy_type .* can't be converted", "input type that its Python API does not take"),
        (r"opset|Opset|IR version|Unsupported model IR", "opset or IR version too new"),
        (r"bfloat16|float8|float4|int4|int2|[Uu]nsupported.*type|Type .*is not|type inference", "type"),
        (r"INVALID_GRAPH|Type Error|ShapeInferenceError", "graph refused"),
    ):
        if re.search(pattern, text):
            return group
    return type(error).__name__


def _signature(model: onnx.ModelProto) -> list[bytes]:
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    return [v.SerializeToString(deterministic=True) for v in (*inputs, *model.graph.output)]


def _valid(model: Model) -> bool:
    try:
        check(model)
    except UserError:
        return False
    return True


def original_outputs(case: Case) -> list[list[Any]] | str:
    """What ONNX Runtime makes of the untouched model, or why the case does not count."""
    results = []
    for inputs, wanted in case.data:
        try:
            got = run(case.model, inputs)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises one class for each of its codes
            return reason_of(error)
        if len(got) != len(wanted):
            return "other outputs than the test expects"
        for a, b in zip(wanted, got, strict=True):
            if differs(a, b, case.rtol, case.atol):
                return "other values than the test expects"
        results.append(got)
    return results or "no data"


def verify(case: Case, outputs: list[list[Any]], name: str, recipe: Pass) -> tuple[bool, str]:
    """Run one recipe on a case: whether it changed the model, and what is wrong with it ("" if nothing).

    A graph that a pass refuses to edit, by name, counts as unchanged.
    """
    model = Model(case.model, case.name)
    before = case.model.SerializeToString(deterministic=True)
    valid = _valid(model)
    try:
        result = recipe(model, Context(check=False))
        again = recipe(result.model, Context(check=False))
    except GraphError as error:
        return (False, "") if str(error).startswith(case.name) else (False, f"{name}: unnamed: {error}")
    except Exception as error:  # noqa: BLE001 - whatever a pass raises is a failure of the suite
        return False, f"{name}: {type(error).__name__}: {str(error)[:300]}"
    if case.model.SerializeToString(deterministic=True) != before:
        return result.modified, f"{name}: wrote into the model it was given"
    if not result.modified:
        return False, ""
    if again.modified:
        return True, f"{name}: not idempotent"
    if _signature(result.model.proto) != _signature(case.model):
        return True, f"{name}: inputs or outputs changed"
    if valid and not _valid(result.model):
        return True, f"{name}: the checker refuses the result"
    for (inputs, _), wanted in zip(case.data, outputs, strict=True):
        try:
            got = run(result.model.proto, inputs)
        except Exception as error:  # noqa: BLE001 - as above
            return True, f"{name}: ONNX Runtime refuses the result: {str(error)[:300]}"
        for a, b in zip(wanted, got, strict=True):
            wrong = differs(a, b, TOLERANCE, TOLERANCE * _largest(a))
            if wrong:
                return True, f"{name}: {wrong}"
    return True, ""


def evaluate(found: Iterator[Case]) -> Outcome:
    """All recipes on all cases."""
    outcome = Outcome()
    for case in found:
        outputs = original_outputs(case)
        if isinstance(outputs, str):
            outcome.skipped[outputs] += 1
            continue
        outcome.tested += 1
        for name, recipe in RECIPES.items():
            modified, wrong = verify(case, outputs, name, recipe)
            outcome.modified[name] += modified
            if wrong:
                outcome.failures.append(f"{case.kind}/{case.name}: {wrong}")
    return outcome


def table(outcomes: dict[str, Outcome]) -> str:
    """The counts as markdown."""
    heads = ["kind", "tested", "skipped (ONNX Runtime fails the original)", *RECIPES, "failed"]
    lines = ["| " + " | ".join([*heads[:3], *(f"changed by `{name}`" for name in RECIPES), "failed"]) + " |"]
    lines.append("| " + " | ".join(["---", *["---:"] * (len(heads) - 1)]) + " |")
    for kind, outcome in outcomes.items():
        counts = [
            outcome.tested,
            sum(outcome.skipped.values()),
            *(outcome.modified[name] for name in RECIPES),
        ]
        lines.append("| " + " | ".join([kind, *map(str, counts), str(len(outcome.failures))]) + " |")
    reasons: Counter[str] = sum((outcome.skipped for outcome in outcomes.values()), Counter())
    listed = ", ".join(f"{group} {count}" for group, count in reasons.most_common())
    return "\n".join([*lines, "", f"Skipped because of: {listed or 'nothing'}."])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be repeated")
    parser.add_argument("-k", dest="text", default="", help="only cases whose name holds this text")
    parser.add_argument("--sample", type=int, default=0, help="a random sample of this many of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, outcomes = time.monotonic(), dict[str, Outcome]()
    for kind in options.kind or KINDS:
        outcomes[kind] = evaluate(cases(kind, options.text, options.sample, options.seed))
        for failure in outcomes[kind].failures:
            print(failure, file=sys.stderr)
    print(table(outcomes))
    print(f"\nonnx {onnx.__version__}, onnxruntime {ort.__version__}, {time.monotonic() - start:.0f} s")
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
