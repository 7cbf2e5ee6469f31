"""Decode speed of the C++ library beside memcpy of the decoded bytes, in turns in one run.

Both write the same output buffer; memcpy reads the decoded floats, decode reads the packed ones. The figure
is memcpy's median time over decode's: 1.0 means as fast as copying what is decoded.

python benchmarks/decode_speed.py [--isa avx2 --isa avx512] [--group-size 32] [--mib 1 4 16 64] [--repeats 41]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import statistics
import time
from collections.abc import Callable

import numpy as np

from runtime_ops.bitpack import packed_bytes
from runtime_ops.kernels import empty_floats
from runtime_ops.library import isas, library_status, load_library

INSTRUCTION_SETS = ["scalar", "avx2", "avx512", "neon"]


def seconds(call: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def compare(
    kind: str, shape: tuple[int, int], bits: int, size: int, isa: str, repeats: int
) -> tuple[float, float]:
    """memcpy / decode of the medians, and decode's GB of floats a second. Both are called through ctypes."""
    library = load_library()
    rng = np.random.default_rng(0)
    rows, row_size = shape
    groups = rows * -(-row_size // size)
    packed = rng.integers(0, 256, packed_bytes(rows * row_size, bits), dtype=np.uint8)
    out = empty_floats(shape)
    target = (out.ctypes.data, out.size, INSTRUCTION_SETS.index(isa))
    geometry = (bits, rows, row_size, size)
    if kind == "gse":
        exponents = rng.integers(0, 256, packed_bytes(groups, 5), dtype=np.uint8)
        function = library.onnxq_decode_gse
        scales = (exponents.ctypes.data, exponents.size)
        geometry = (*geometry, -30)
    else:
        scale = rng.uniform(0.001, 1, groups).astype(np.float16)
        zero_point = rng.integers(-4, 4, groups).astype(np.int8)
        function = library.onnxq_decode_affine
        scales = (scale.ctypes.data, zero_point.ctypes.data, groups)
    arguments = (packed.ctypes.data, packed.size, *scales, *geometry, *target)
    if function(*arguments):
        raise SystemExit(f"the library refuses {arguments}")
    source = empty_floats(shape)
    source[:] = out
    decode = functools.partial(function, *arguments)
    copy = functools.partial(ctypes.memmove, target[0], source.ctypes.data, source.nbytes)
    loops = max(1, (8 << 20) // source.nbytes)
    pairs = [(seconds(copy, loops), seconds(decode, loops)) for _ in range(repeats)]
    copied, decoded = (statistics.median(times) for times in zip(*pairs, strict=True))
    return copied / decoded, out.nbytes / decoded / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--isa", action="append", choices=isas())
    parser.add_argument("--kind", action="append", choices=["gse", "affine"])
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--row-size", type=int, default=1024)
    parser.add_argument("--mib", type=float, nargs="+", default=[1.0, 4.0, 16.0, 64.0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)))
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    print(library_status())
    print(f"rows of {options.row_size}, groups of {options.group_size}; memcpy / decode (GB/s of floats)")
    print("| kind | isa | MiB | " + " | ".join(f"b = {bits}" for bits in options.bits) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(options.bits))
    for kind in options.kind or ["gse", "affine"]:
        for isa in options.isa or isas():
            for mib in options.mib:
                shape = (max(1, round(mib * 2**18 / options.row_size)), options.row_size)
                cells = []
                for bits in options.bits:
                    ratio, rate = compare(kind, shape, bits, options.group_size, isa, options.repeats)
                    cells.append(f"{ratio:.2f} ({rate:.0f})")
                print(f"| {kind} | {isa} | {mib:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
