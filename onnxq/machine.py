"""What this machine is: CPU model and the instruction sets that decide how integers run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from pathlib import Path

__all__ = [
    "INTERESTING_FLAGS",
    "all_flags",
    "cpu_flags",
    "cpu_name",
    "default_threads",
    "int8_hardware",
    "return_freed_memory",
    "saturates",
    "vnni_warning",
]

INTERESTING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "asimd",
)


@functools.cache  # asked for by every session
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _field(*names: str) -> str:
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def cpu_name() -> str:
    """The processor as the system calls it."""
    return _field("model name", "Hardware") or platform.processor() or platform.machine()


def all_flags() -> frozenset[str]:
    """What the CPU offers, as Linux names it; empty where the system does not tell (macOS, Windows)."""
    return frozenset(_field("flags", "Features").split())


def cpu_flags() -> list[str]:
    """Which of INTERESTING_FLAGS the CPU has; empty where the system does not tell."""
    have = all_flags()
    return [flag for flag in INTERESTING_FLAGS if flag in have]


def int8_hardware() -> str:
    """The CPU, and its instructions that multiply int8."""
    flags = [flag for flag in cpu_flags() if flag in ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")]
    return f"{cpu_name()}, {', '.join(flags) or 'no instructions for int8'}"


def saturates() -> bool:
    """Whether sums of two uint8 x int8 products saturate in 16 bits here: x86-64 without VNNI."""
    flags = cpu_flags()
    known = platform.machine().lower() in ("x86_64", "amd64") and bool(flags)
    return known and not {"avx512_vnni", "avx_vnni"} & set(flags)


def vnni_warning() -> str | None:
    """What to say where 8-bit products saturate; None elsewhere."""
    if not saturates():
        return None
    return (
        "this CPU has no VNNI: sums of uint8 x int8 products saturate here, unless ONNX Runtime's session "
        "option session.x64quantprecision is 1, as it is for what is measured here; set it where the file "
        "runs on such a CPU, or use `weights` int7 or `activations` int8"
    )


def default_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def return_freed_memory() -> None:
    """Give the system back what was freed: glibc keeps it, hundreds of megabytes after a large model."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none to be had
        ctypes.CDLL(None).malloc_trim(0)
