"""Every model of onnx.backend.test through the quantizing commands, in this process.

    python benchmarks/backend_quantize.py [--kind node ...] [-k TEXT] [--sample N --seed S] [--freeze]

Models that ONNX Runtime cannot run count too: each command must end with exit code 0 and a file, or with exit
code 2, one sentence and no file; with 0 only when a layer was quantized. Prints a markdown table and the
sentences, counted; exit code 1 if a command did anything else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from backend_suite import KINDS, Case, cases
from click.testing import CliRunner
from onnx import numpy_helper

from onnxq.cli.app import cli

SCHEMES: dict[str, tuple[str, ...]] = {
    "int8 dynamic": ("--activations", "dynamic"),
    "int8 weights": ("--activations", "float"),
    "gse6 weights": ("--weights", "gse6", "--activations", "float"),
    "tcq3 weights": ("--weights", "tcq3", "--activations", "float"),
    "int4:block32 weights": ("--weights", "int4:block32", "--activations", "float"),
    "int8 static": ("--random-calibration", "--calibration-samples", "16", "--threads", "1"),
}


def frozen(case: Case) -> onnx.ModelProto:
    """The case with every input but the first made an initializer of its test data: nodes become layers."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    given = case.data[0][0] if case.data else []
    values = {value.name: array for value, array in zip(model.graph.input, given, strict=False)}
    kept = [
        value for index, value in enumerate(case.model.graph.input) if not index or value.name not in values
    ]
    for value in case.model.graph.input[1:]:
        array = values.get(value.name)
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kept.append(value)
    del model.graph.input[:]
    model.graph.input.extend({value.name: value for value in kept}.values())
    return model


def attempt(path: Path, flags: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of one command, and what is wrong with how it ended; else the sentence of an exit code 2."""
    target = path.with_name("quantized.onnx")
    target.unlink(missing_ok=True)
    result = CliRunner().invoke(cli, ["quantize", str(path), *flags, "-o", str(target), "--json"])
    text = result.output.strip()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code == 2 and not target.exists():
        return 2, text.splitlines()[-1] if text else "exit code 2 without a sentence"
    if result.exit_code or not target.exists():
        return 1, f"exit code {result.exit_code}: {text[-300:]}"
    document = json.loads(result.stdout)
    return (0, "") if document["quantized"] else (1, "exit code 0, and nothing is quantized")


def group(sentence: str) -> str:
    """The sentence without names and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\S*\.onnx:", "_", sentence))[:110]


def run_all(found: Iterable[Case], sentences: Counter[str], freeze: bool = False) -> dict[str, Counter[int]]:
    """How often each scheme ended with each exit code; counts the sentences of refusals."""
    counts = {scheme: Counter[int]() for scheme in SCHEMES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for case in found:
            onnx.save(frozen(case) if freeze else case.model, path)
            for scheme, flags in SCHEMES.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    code, text = attempt(path, flags)
                counts[scheme][code] += 1
                if code == 2:
                    sentences[group(text)] += 1
                elif code:
                    print(f"{case.kind}/{case.name}, {scheme}: {text}", file=sys.stderr, flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be repeated")
    parser.add_argument("-k", dest="text", default="", help="only cases whose name holds this text")
    parser.add_argument("--sample", type=int, default=0, help="a random sample of this many of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--freeze", action="store_true", help="inputs behind the first become initializers: more layers"
    )
    options = parser.parse_args()
    start, sentences = time.monotonic(), Counter[str]()
    print(
        "| kind | scheme | quantized | refused in a sentence | failed |\n| --- | --- | ---: | ---: | ---: |"
    )
    failures = 0
    for kind in options.kind or KINDS:
        found = cases(kind, options.text, options.sample, options.seed)
        for scheme, codes in run_all(found, sentences, options.freeze).items():
            print(f"| {kind} | {scheme} | {codes[0]} | {codes[2]} | {codes[1]} |", flush=True)
            failures += codes[1]
    print()
    for text, count in sentences.most_common():
        print(f"{count:6} {text}")
    print(f"\n{time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
