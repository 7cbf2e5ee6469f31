"""What this machine is: CPU model and the instruction sets that decide how integers run."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["INTERESTING_FLAGS", "cpu_flags", "cpu_name", "default_threads", "vnni_warning"]

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


def cpu_flags() -> list[str]:
    """Which of INTERESTING_FLAGS the CPU has; empty where the system does not tell (macOS, Windows)."""
    have = set(_field("flags", "Features").split())
    return [flag for flag in INTERESTING_FLAGS if flag in have]


def vnni_warning() -> str | None:
    """A warning on x86-64 without VNNI, where 8-bit products saturate in 16 bits; None elsewhere."""
    flags = cpu_flags()
    if platform.machine().lower() not in ("x86_64", "amd64") or not flags:
        return None
    if {"avx512_vnni", "avx_vnni"} & set(flags):
        return None
    return (
        "this CPU has no VNNI: uint8 x int8 products may saturate here, so accuracy measured on this machine "
        "can be lower than on the target; use --weights int7 or --activations int8 to rule it out"
    )


def default_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
