"""Random models of the operators through ONNX Runtime: the right output or an error, never a crash.

Attributes, sizes, types and lengths of the inputs are drawn so that most are nearly right. A run that is
accepted must give the numpy reference's bits. With the sanitized library (runtime_ops/native/test/README.md)
preloaded, memory errors end the process.

python benchmarks/fuzz_operators.py [--runs 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from runtime_ops.bitpack import packed_bytes
from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.library import library_status, register

DOMAIN = "ai.onnxq"
ODD = [0, -1, 1, 9, 31, 2**31, 2**32 + 4, 2**40, 2**62, 2**63 - 1, -(2**63)]


def mostly(rng: np.random.Generator, usual: Any, chance: float = 0.06) -> Any:
    """`usual`, now and then an integer that is probably wrong, a float, a text, a list or nothing."""
    if rng.random() > chance:
        return usual
    if rng.random() < 0.8:
        return int(rng.choice(np.array(ODD, object)))
    return [0.5, "text", [3, 4], None][rng.integers(4)]


def stream(rng: np.random.Generator, wished: int) -> np.ndarray[Any, Any]:
    """About as many random bytes as wished, as a vector or a matrix, now and then of another type."""
    length = max(0, wished + int(rng.choice([0, 0, 0, 0, 0, 0, 1, 9, -1, -wished])))
    data = rng.integers(0, 256, length, dtype=np.uint8)
    if rng.random() < 0.03:
        return data.astype(rng.choice(np.array(["i1", "f4", "i8", "f2"])))
    return data.reshape(-1, 1) if rng.random() < 0.2 else data


def case(rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """(operator, attributes, inputs)."""
    rank = int(rng.integers(1, 5))
    shape = [int(size) for size in rng.integers(1, 12, rank)]
    bits, size = int(rng.integers(2, 9)), int(rng.choice([1, 3, 7, 8, 16, 32, 64, 1000]))
    row_size = math.prod(shape[1:])
    groups = shape[0] * -(-row_size // size)
    attributes = {"bits": mostly(rng, bits), "group_size": mostly(rng, size)}
    if rng.random() < 0.06:
        shape[int(rng.integers(rank))] = int(rng.choice(np.array(ODD, object)))
    attributes["shape"] = mostly(rng, shape, 0.02)
    if rng.random() < 0.1:
        attributes["axis"] = mostly(rng, 0, 0.5)
    values = math.prod(shape) if min(shape) > 0 and max(shape) < 99 else 9
    inputs = {"packed": stream(rng, packed_bytes(values, bits))}
    if rng.random() < 0.5:
        attributes["exponent_base"] = mostly(rng, int(rng.integers(-126, 98 - bits)))
        inputs["exponents"] = stream(rng, packed_bytes(groups, 5))
        op = "GSEDequantizeLinear"
    else:
        count = max(0, groups + int(rng.choice([0, 0, 0, 0, 1, -1])))
        patterns = rng.integers(0, 1 << 16, count).astype(np.uint16)
        finite = patterns & np.uint16(0xBBFF if rng.random() < 0.8 else 0xFFFF)
        inputs["scale"] = finite.view(np.float16)
        inputs["zero_point"] = rng.integers(-128, 128, count).astype(np.int8)
        op = "PackedDequantizeLinear"
    if rng.random() < 0.3:
        for number in range(int(rng.integers(1, 12))):
            kind = rng.choice(np.array(["f4", "i8", "i4"]))
            inputs[f"table{number}"] = np.zeros(int(rng.integers(0, 3)), kind)
    if rng.random() < 0.02:
        inputs.popitem()
    return op, {name: value for name, value in attributes.items() if value is not None}, inputs


def run(op: str, attributes: dict[str, Any], inputs: dict[str, Any], constant: bool) -> Any:
    node = helper.make_node(op, list(inputs), ["y"], name="the node", domain=DOMAIN, **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in inputs.items()]
    infos = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [] if constant else infos, [output], tensors if constant else [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    register(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {} if constant else inputs)[0]


def reference(op: str, attributes: dict[str, Any], inputs: dict[str, Any]) -> Any:
    shape = attributes["shape"]
    # A group ends with its row, however large it may be.
    numbers = (attributes["bits"], min(attributes["group_size"], math.prod(shape[1:])))
    if op == "GSEDequantizeLinear":
        streams = (inputs["packed"], inputs["exponents"])
        return decode_gse(*streams, *numbers, attributes["exponent_base"], shape)
    return decode_affine(inputs["packed"], inputs["scale"], inputs["zero_point"], *numbers, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    for number in range(options.runs):
        op, attributes, inputs = case(rng)
        try:
            found = run(op, attributes, inputs, bool(rng.random() < 0.5))
        except Exception as error:
            text = str(error)
            if "onnxruntime" not in type(error).__module__ or "the node" not in text:
                raise SystemExit(f"run {number}: {op} {attributes}: {type(error)}: {text}") from error
            outcomes["refused with the node's name"] += 1
            continue
        wished = reference(op, attributes, inputs)
        if found.shape != wished.shape or (found.view(np.uint32) != wished.view(np.uint32)).any():
            raise SystemExit(f"run {number}: {op} {attributes}: other values than the reference")
        outcomes["accepted, right bits"] += 1
    seconds = time.perf_counter() - start
    print(f"{options.runs} models in {seconds:.0f} s, {library_status()['isa']}: {dict(outcomes)}")


if __name__ == "__main__":
    main()
