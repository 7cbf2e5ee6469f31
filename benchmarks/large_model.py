"""Peak memory and time of each command on a model of more than 2 GB.

    python benchmarks/large_model.py [--gigabytes 2.5] [--folder /tmp] [--only info,fold] [--keep]

Makes two models of random weights with external data in a temporary folder: one of opset 17 (MatMul and Gemm
layers of 4096 x 4096, a Conv, an embedding) and one of opset 12 that has to be upgraded. Each command runs in
a process of its own; its peak is what the kernel reports for it (ru_maxrss, mapped files included), given in
multiples of the weights' bytes. Needs about 3 times the model's size on disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, TOKENS = 4096, 1024
# name -> (arguments of onnxq, allowed peak in multiples of the weights or 0); words in capitals are files.
COMMANDS: dict[str, tuple[list[str], float]] = {
    "info": (["info", "IN"], 1.5),
    "fold": (["fold", "IN", "-o", "OUT"], 2.5),
    "smooth": (["smooth", "IN", "--layers", "all", "-o", "OUT"], 2.5),
    "int8": (["quantize", "IN", "--activations", "float", "-o", "OUT"], 2.5),
    "int8 from opset 12": (["quantize", "OLD", "--activations", "float", "-o", "OUT"], 2.5),
    "int4": (["quantize", "IN", "--weights", "int4", "--activations", "float", "-o", "OUT"], 2.5),
    "int4:block32": (
        ["quantize", "IN", "--weights", "int4:block32", "--activations", "float", "-o", "OUT"],
        2.5,
    ),
    "gse6": (["quantize", "IN", "--weights", "gse6:block32", "--activations", "float", "-o", "GSE"], 2.5),
    "decode": (["decode", "GSE", "-o", "OUT"], 2.5),
    "tcq3 of two layers": (
        [
            *("quantize", "IN", "--weights", "tcq3", "--activations", "float", "-o", "OUT"),
            *("--exclude", "layer[2-9]*", "--exclude", "layer1?*"),
        ],
        2.5,
    ),
    "dynamic": (["quantize", "IN", "--activations", "dynamic", "-o", "OUT"], 2.5),
    "static": (["quantize", "IN", "--data", "DATA", "--calibration-samples", "8", "-o", "OUT"], 0),
    "eval": (["eval", "IN", "--data", "DATA"], 0),
    "golden": (["golden", "update", "simplify", "IN", "TEXT"], 2.5),
    "apply": (["apply", "simplify | quantize{activations=float}", "IN", "-o", "OUT"], 2.5),
}


def layers_for(gigabytes: float) -> int:
    """Layers of WIDTH x WIDTH float32 that fill the file, beside the embedding and the convolution."""
    return max(4, round(gigabytes * 1e9 / (4 * WIDTH * WIDTH)) - 1)


def write_model(path: Path, layers: int, opset: int) -> int:
    """Write the model and its weights, one at a time. Returns the bytes of the weights."""
    rng = np.random.default_rng(0)
    tensors: list[TensorProto] = []
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h0"], "embedding"),
        helper.make_node("Unsqueeze", ["h0", *(["axis"] if opset >= 13 else [])], ["u"], "as_image")
        if opset >= 13
        else helper.make_node("Unsqueeze", ["h0"], ["u"], "as_image", axes=[2]),
        helper.make_node("Conv", ["u", "kernel"], ["c"], "conv", group=WIDTH),
        helper.make_node("Flatten", ["c"], ["a0"], "flat"),
    ]
    if opset >= 13:
        tensors.append(numpy_helper.from_array(np.array([2], np.int64), "axis"))
    with Path(f"{path}_weights.bin").open("wb") as data:

        def weight(name: str, *shape: int) -> None:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            values = rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": f"{path.name}_weights.bin", "offset": data.tell(), "length": values.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(values.data)
            tensors.append(tensor)

        weight("table", TOKENS, WIDTH)
        weight("kernel", WIDTH, 1, 1)
        for index in range(layers):
            weight(f"w{index}", WIDTH, WIDTH)
            op = "Gemm" if index % 4 == 3 else "MatMul"
            nodes.append(helper.make_node(op, [f"a{index}", f"w{index}"], [f"b{index}"], f"layer{index}"))
            nodes.append(helper.make_node("Relu", [f"b{index}"], [f"a{index + 1}"], f"relu{index}"))
        size = data.tell()
    values = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info(f"a{layers}", TensorProto.FLOAT, ["N", WIDTH]),
    ]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path)
    )
    return size


def measure(arguments: list[str]) -> tuple[float, float, str]:
    """(seconds, peak bytes, last line of output) of one command. Exits where it fails."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "onnxq", *arguments], stdout=out, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode().strip()
    if child.returncode:
        sys.exit(f"onnxq {' '.join(arguments)}: exit code {child.returncode}\n{text}")
    last = text.splitlines()[-1] if text else ""
    return time.monotonic() - start, usage.ru_maxrss * 1024.0, last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--only", default="", help="commands, separated by commas")
    options = parser.parse_args()
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or list(COMMANDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    failed = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="onnxq-large-") as folder:
        place = Path(folder)
        os.environ["TMPDIR"] = folder
        names = {
            "IN": place / "large.onnx",
            "OLD": place / "old.onnx",
            "OUT": place / "out.onnx",
            "GSE": place / "gse.onnx",
            "TEXT": place / "golden.txt",
            "DATA": place / "data.npz",
        }
        layers = layers_for(options.gigabytes)
        ids = np.random.default_rng(1).integers(0, TOKENS, 16)
        np.savez(names["DATA"], inputs=ids, labels=ids % WIDTH)
        size = write_model(names["IN"], layers, 17)
        print(f"weights: {size / 1e9:.2f} GB")
        print("| command | wall | peak | times the weights | allowed |\n| --- | --- | --- | --- | --- |")
        for name in chosen:
            arguments, allowed = COMMANDS[name]
            if "OLD" in arguments and not names["OLD"].exists():
                write_model(names["OLD"], layers, 12)
            if name == "decode" and not names["GSE"].exists():
                measure([str(names.get(word, word)) for word in COMMANDS["gse6"][0]])
            seconds, peak, last = measure([str(names.get(word, word)) for word in arguments])
            limit = f"{allowed:g}" if allowed else "-"
            print(
                f"| {name} | {seconds:.0f} s | {peak / 1e9:.2f} GB | {peak / size:.2f} | {limit} |",
                flush=True,
            )
            print(f"  {last}", file=sys.stderr, flush=True)
            if allowed and peak > allowed * size:
                failed.append(name)
            for key in ("OLD", "OUT"):
                for file in place.glob(f"{names[key].stem}*") if key in arguments else ():
                    file.unlink()
    if failed:
        sys.exit(f"over the allowed memory: {', '.join(failed)}")


if __name__ == "__main__":
    main()
