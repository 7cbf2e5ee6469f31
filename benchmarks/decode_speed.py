"""Decode speed of the C++ library beside memcpy of what is decoded and its own scalar kernel, in turns.

Times are the thread's CPU times. All write the same output buffer; memcpy reads the decoded floats, decode
the packed ones. The first figure is memcpy's median time over decode's: 1.0 means as fast as copying what is
decoded. Behind it: GB of floats a second, and the scalar kernel's median time over this one's.

python benchmarks/decode_speed.py [--isa avx2 --isa avx512] [--kind tcq] [--group-size 32] [--mib 1 4 16 64]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runtime_ops.bitpack import packed_bytes
from runtime_ops.kernels import empty_floats
from runtime_ops.library import isas, library_status, load_library
from runtime_ops.trellis import TCQ_BITS, chain_bytes, tcq_levels

Float = npt.NDArray[np.float32]
INSTRUCTION_SETS = ["scalar", "avx2", "avx512", "neon"]


def seconds(call: Callable[[], object], loops: int) -> float:
    start = time.thread_time()
    for _ in range(loops):
        call()
    return (time.thread_time() - start) / loops


def call_of(kind: str, shape: tuple[int, int], bits: int, size: int, out: Float) -> Callable[[str], int]:
    """Decodes random codes of this kind into `out`, on the instruction set that it is called with."""
    library = load_library()
    rng = np.random.default_rng(0)
    rows, row_size = shape
    groups = rows * -(-row_size // size)
    bytes_of = chain_bytes if kind == "tcq" else packed_bytes
    packed = rng.integers(0, 256, bytes_of(rows * row_size, bits), dtype=np.uint8)
    scale = rng.uniform(0.001, 1, groups).astype(np.float16)
    zero_point = rng.integers(-4, 4, groups).astype(np.int8)
    exponents = rng.integers(0, 256, packed_bytes(groups, 5), dtype=np.uint8)
    levels, row_scale = tcq_levels(), scale[:rows].astype(np.float32)

    def call(isa: str) -> int:
        target = (out.ctypes.data, out.size, INSTRUCTION_SETS.index(isa))
        stream = (packed.ctypes.data, packed.size)
        if kind == "gse":
            scales = (exponents.ctypes.data, exponents.size)
            return int(library.onnxq_decode_gse(*stream, *scales, bits, rows, row_size, size, -30, *target))
        if kind == "tcq":
            scales = (row_scale.ctypes.data, levels.ctypes.data)
            return int(library.onnxq_decode_tcq(*stream, *scales, bits, rows, row_size, *target))
        affine = (scale.ctypes.data, zero_point.ctypes.data, groups)
        return int(library.onnxq_decode_affine(*stream, *affine, bits, rows, row_size, size, *target))

    return call


def compare(
    kind: str, shape: tuple[int, int], bits: int, size: int, isa: str, repeats: int
) -> tuple[float, float, float]:
    """memcpy / decode of the medians, decode's GB of floats a second, scalar / decode. All through ctypes."""
    out, source = empty_floats(shape), empty_floats(shape)
    call = call_of(kind, shape, bits, size, out)
    if call(isa):
        raise SystemExit(f"the library refuses {kind} of {bits} bits")
    source[:] = out
    copy = functools.partial(ctypes.memmove, out.ctypes.data, source.ctypes.data, source.nbytes)
    calls = [copy, functools.partial(call, isa), functools.partial(call, "scalar")]
    loops = max(1, (8 << 20) // source.nbytes)
    rounds = [[seconds(each, loops) for each in calls] for _ in range(repeats)]
    copied, decoded, scalar = (statistics.median(times) for times in zip(*rounds, strict=True))
    return copied / decoded, out.nbytes / decoded / 1e9, scalar / decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--isa", action="append", choices=isas())
    parser.add_argument("--kind", action="append", choices=["gse", "affine", "tcq"])
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--row-size", type=int, default=1024)
    parser.add_argument("--mib", type=float, nargs="+", default=[1.0, 4.0, 16.0, 64.0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)))
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    print(library_status())
    print(f"rows of {options.row_size}, groups of {options.group_size}")
    print("memcpy / decode (GB/s of floats, scalar / this)")
    print("| kind | isa | MiB | " + " | ".join(f"b = {bits}" for bits in options.bits) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(options.bits))
    for kind in options.kind or ["gse", "affine", "tcq"]:
        for isa in options.isa or isas():
            for mib in options.mib:
                shape = (max(1, round(mib * 2**18 / options.row_size)), options.row_size)
                cells = []
                for bits in options.bits:
                    if kind == "tcq" and bits not in TCQ_BITS:
                        cells.append("-")
                        continue
                    size = options.group_size
                    ratio, rate, gain = compare(kind, shape, bits, size, isa, options.repeats)
                    cells.append(f"{ratio:.2f} ({rate:.0f}, {gain:.1f}x)")
                print(f"| {kind} | {isa} | {mib:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
