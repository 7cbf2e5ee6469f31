"""Which instructions of a CPU's model this machine really offers.

A hypervisor may hide instructions that the CPU's model has: LLVM goes by the model (`znver4`), and code that
it makes for one whose AVX-512 is hidden ends with an illegal instruction.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["hidden_features"]

# LLVM's name -> Linux's, where they differ. Features in neither list select no instruction that is emitted.
_RENAMED = {
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxifma": "avx_ifma",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "rdrnd": "rdrand",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
}
_ALIKE = (
    *("adx", "avx", "avx2", "bmi2", "f16c", "fma", "gfni", "movbe", "popcnt", "sse4a", "ssse3"),
    *("vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512ifma", "avx512vbmi"),
    "avx512vl",
)
_LINUX = {**_RENAMED, **{name: name for name in _ALIKE}}


def hidden_features(features: Iterable[str], flags: frozenset[str]) -> list[str]:
    """Those of LLVM's `features` of a CPU that select instructions and that `flags` lack, sorted.

    flags: of `all_flags`; empty hides nothing, as nothing is known then.
    """
    if not flags:
        return []
    return sorted(name for name in features if name in _LINUX and _LINUX[name] not in flags)
