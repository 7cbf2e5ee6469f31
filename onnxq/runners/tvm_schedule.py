"""A schedule for TVM's CPU code: tiles in registers, vectors over channels, threads over the rest.

The wheel has no schedule for convolutions on a CPU: its plain loops take about ten times as long as ONNX
Runtime. Here the network is converted to NHWC (weights HWIO), so that the innermost axis of every
convolution is its output channels, and each kernel is tiled like this, for S the spatial and R the
reduction axes:

    parallel (S outer tiles, fused)
        for R
            unrolled (tile over the last but one S: pixels of a row) x (a few vectors of channels)
                vector of channels
        the epilogue of the tile (bias, activation), vectorized

The accumulators of a tile stay below TVM's limit for arrays on the stack (1024 bytes), which is what lets
LLVM keep them in registers. Kernels of another form (several reductions, as in Softmax) get parallel outer
loops only.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight.cpu.base import CPUScheduleRule
from tvm.target import Target
from tvm.target.codegen import llvm_get_vector_width

__all__ = ["Tiled"]

_STACK_BYTES = 1024
_FLOAT_BITS = 32
# Vectors of channels in a tile; more pay only where the tile has few pixels.
_VECTORS = 2
_REDUCTION = 2


class _UnfitError(Exception):
    """The kernel does not have the form that a schedule is for."""


def _largest_factor(extent: int, limit: int) -> int:
    return max(factor for factor in range(1, limit + 1) if extent % factor == 0)


class Tiled(CPUScheduleRule):  # type: ignore[misc]
    """The rule; to be applied by dlight.ApplyDefaultSchedule."""

    def apply(self, func: Any, target: Target, _tunable: bool) -> Any:
        if not isinstance(func, tirx.PrimFunc) or not self.is_target_available(target):
            return None
        lanes = max(4, int(llvm_get_vector_width(target)) // _FLOAT_BITS)
        for schedule in (_tiled, _plain):
            result = s_tir.Schedule(func)
            try:
                schedule(result, lanes)
                return result
            except (_UnfitError, s_tir.schedule.ScheduleError):
                continue
        return None


def _blocks(schedule: Any) -> list[tuple[Any, list[bool]]]:
    """Each block of the kernel and, loop by loop, whether it is a reduction."""
    found = []
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        axes = [int(each.iter_type) == _REDUCTION for each in schedule.get(block).iter_vars]
        if len(axes) != len(schedule.get_loops(block)):
            raise _UnfitError
        found.append((block, axes))
    return found


def _extent(schedule: Any, loop: Any) -> int:
    extent = schedule.get(loop).extent
    if not isinstance(extent, tirx.IntImm):
        raise _UnfitError
    return int(extent.value)


def _plain(schedule: Any, lanes: int) -> None:
    """Threads over the spatial loops of each block, vectors where there is no reduction."""
    for block, axes in _blocks(schedule):
        if not any(axes):
            _spread(schedule, block, lanes)
            continue
        loops = schedule.get_loops(block)
        spatial = [loop for loop, reduces in zip(loops, axes, strict=True) if not reduces]
        if spatial:
            schedule.reorder(*spatial, *(loop for loop, reduces in zip(loops, axes, strict=True) if reduces))
            schedule.parallel(schedule.fuse(*spatial))


def _spread(schedule: Any, block: Any, lanes: int) -> None:
    """An elementwise block: vectors over the last axis, threads over the rest."""
    loops = schedule.get_loops(block)
    if not loops:
        return
    width = _largest_factor(_extent(schedule, loops[-1]), lanes)
    outer, vector = schedule.split(loops[-1], [None, width])
    if width > 1:
        schedule.vectorize(vector)
    schedule.parallel(schedule.fuse(*loops[:-1], outer))


def _tiled(schedule: Any, lanes: int) -> None:
    """One reduction with elementwise blocks before and behind it."""
    blocks = _blocks(schedule)
    reductions = [index for index, (_, axes) in enumerate(blocks) if any(axes)]
    if len(reductions) != 1:
        raise _UnfitError
    at = reductions[0]
    behind = [block for block, _ in blocks[at + 1 :]]
    for block, _ in blocks[:at]:
        _spread(schedule, block, lanes)
    for block in behind[:-1]:
        schedule.compute_inline(block)
    block, axes = blocks[at]
    _tile(schedule, block, axes, behind[-1] if behind else schedule.cache_write(block, 0, "global"), lanes)


def _tile(schedule: Any, block: Any, axes: list[bool], last: Any, lanes: int) -> None:
    """Tile the reduction `block` and compute `last`, what is behind it, tile by tile."""
    loops = schedule.get_loops(block)
    spatial = [loop for loop, reduces in zip(loops, axes, strict=True) if not reduces]
    reduction = [loop for loop, reduces in zip(loops, axes, strict=True) if reduces]
    if not spatial:
        raise _UnfitError
    channels = _extent(schedule, spatial[-1])
    width = _largest_factor(channels, lanes)
    vectors = _largest_factor(channels // width, _VECTORS)
    outer_channels, inner, vector = schedule.split(spatial[-1], [None, vectors, width])
    outer, tile = [outer_channels], [inner]
    if len(spatial) > 1:
        room = max(1, _STACK_BYTES * 8 // (_FLOAT_BITS * lanes) * 7 // 8 // vectors)
        pixels = _largest_factor(_extent(schedule, spatial[-2]), room)
        rows, columns = schedule.split(spatial[-2], [None, pixels])
        outer, tile = [*spatial[:-2], rows, outer_channels], [columns, inner]
    schedule.reorder(*outer, *reduction, *tile, vector)
    fused = schedule.fuse(*outer)
    schedule.reverse_compute_at(last, fused)
    if width > 1:
        schedule.vectorize(vector)
    for loop in tile:
        schedule.unroll(loop)
    rest = schedule.get_loops(last)[1:]
    if rest:
        behind = _largest_factor(_extent(schedule, rest[-1]), lanes)
        if behind > 1:
            schedule.vectorize(schedule.split(rest[-1], [None, behind])[1])
    schedule.parallel(fused)
    schedule.decompose_reduction(block, reduction[0])
