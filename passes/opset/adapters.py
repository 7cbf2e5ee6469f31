"""How a node is written at a newer opset: one function per change of an operator, one line in the table.

`ADAPTERS[operator, opset]` edits a node that is valid just below `opset` so that it gives the same values at
`opset`. Nodes that it adds are of that opset too, and are converted further like any other. What the old
operators mean was read off ONNX Runtime's kernels, with which benchmarks/opset_sweep.py compares the result.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from passes.opset.site import Adapter, RefusedError, Site

__all__ = ["ADAPTERS"]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
_LARGEST = float(np.finfo(np.float32).max)


def _inference_7(site: Site) -> None:
    """Before opset 7 the operator was in training mode unless is_test said otherwise."""
    if not site.take("is_test", 0):
        raise RefusedError("it is written to train (is_test=0)")


def _broadcast_7(site: Site) -> None:
    """Sizes were matched from the last axis on, as now, unless an axis was named."""
    site.take("broadcast")
    if site.take("axis") is not None:
        raise RefusedError("it names the axis from which it broadcasts")


def _upsample_9(site: Site) -> None:
    """Scales become an input."""
    scales = site.take("scales")
    site.input(site.constant(scales, FLOAT), 1)


def _upsample_10(site: Site) -> None:
    """Resize-10 is the same operator by another name."""
    site.node.op_type = "Resize"


def _resize_11(site: Site) -> None:
    """Coordinates are x / scale; nearest rounds them down along axes that grow and up along axes that shrink.

    Resize-11 rounds all axes alike: two nodes are needed if some grow and others shrink, or if nobody knows.
    """
    mode = site.attribute("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise RefusedError(f"mode '{mode}' does not exist at opset 10")
    scales, value = site.node.input[1], site.scope.value(site.node.input[1])
    site.set("coordinate_transformation_mode", "asymmetric")
    site.input(scales, 2)
    site.node.input[1] = site.constant([], FLOAT)  # the region of interest, which asymmetric does not read
    if mode == "linear":
        return
    site.set("nearest_mode", "floor" if value is None or (value >= 1).all() else "ceil")
    if value is not None and ((value >= 1).all() or (value <= 1).all()):
        return
    # Growing first keeps every value for the node that shrinks.
    one, empty = site.constant(1.0, FLOAT), site.node.input[1]
    grown = site.add(
        "Resize",
        [site.node.input[0], empty, site.add("Max", [scales, one])],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    site.set("nearest_mode", "ceil")
    site.node.input[0], site.node.input[2] = grown, site.add("Min", [scales, one])


def _scatter_11(site: Site) -> None:
    site.node.op_type = "ScatterElements"


def _slice_10(site: Site) -> None:
    starts, ends, axes = site.take("starts"), site.take("ends"), site.take("axes")
    site.node.input.extend([site.constant(starts, INT64), site.constant(ends, INT64)])
    if axes is not None:
        site.node.input.append(site.constant(axes, INT64))


def _topk_10(site: Site) -> None:
    site.node.input.append(site.constant([site.take("k")], INT64))


def _clip_11(site: Site) -> None:
    """Bounds become inputs of the input's type. The defaults are bounds too: they clip infinities."""
    element = site.element()
    for bound in (site.take("min", -_LARGEST), site.take("max", _LARGEST)):
        with np.errstate(over="ignore"):
            site.node.input.append(site.constant(bound, element))


def _pad_11(site: Site) -> None:
    """Amounts and the value become inputs; a value that is left out is zero."""
    pads, value = site.take("pads"), site.take("value", 0.0)
    site.input(site.constant(pads, INT64), 1)
    if value and site.attribute("mode", "constant") == "constant":
        site.input(site.constant(value, site.element()), 2)


def _dropout_10(site: Site) -> None:
    """The mask becomes boolean."""
    if site.output(1):
        site.behind(1, "Cast", to=site.element())


def _dropout_12(site: Site) -> None:
    """The ratio becomes an input. The mask of ONNX Runtime is false before opset 12 and true from then on."""
    site.input(site.constant(site.take("ratio", 0.5), FLOAT), 1)
    if site.output(1):
        site.behind(1, "Not")


def _softmax_13(site: Site) -> None:
    """Up to opset 12 the operator runs over all axes from `axis` on; from 13 on over `axis` alone."""
    axis, rank = site.take("axis", 1), site.scope.rank(site.node.input[0])
    site.set("axis", -1)
    if axis == -1 or (rank is not None and axis == rank - 1):
        return
    x = site.node.input[0]
    site.node.input[0] = site.add("Flatten", [x], axis=axis)
    site.behind(0, "Reshape", site.add("Shape", [x]))


def _split_13(site: Site) -> None:
    sizes = site.take("split")
    if sizes is not None:
        site.input(site.constant(sizes, INT64), 1)


def _split_18(site: Site) -> None:
    """Without sizes, the number of equal parts becomes an attribute."""
    if len(site.node.input) < 2 or not site.node.input[1]:
        site.set("num_outputs", len(site.node.output))


def _axes_input(site: Site) -> None:
    axes = site.take("axes")
    if axes is not None:
        site.input(site.constant(axes, INT64), 1)


def _batch_normalization_9(site: Site) -> None:
    """Statistics of every position of the sample (spatial=0) are gone."""
    if not site.take("spatial", 1):
        raise RefusedError("spatial=0 has no form at newer opsets")


def _batch_normalization_14(site: Site) -> None:
    """The outputs of training are others; those that nobody reads are dropped."""
    if any(site.output(index) for index in range(1, len(site.node.output))):
        raise RefusedError("its outputs of training are read, and have no form at newer opsets")
    del site.node.output[1:]


def _roi_align_16(site: Site) -> None:
    """The default moves regions by half a pixel from 16 on."""
    site.set("coordinate_transformation_mode", "output_half_pixel")


def _scan_9(_: Site) -> None:
    raise RefusedError("its axis of batches is gone from opset 9 on")


def _dft_20(site: Site) -> None:
    site.input(site.constant(site.take("axis", 1), INT64), 2)


def _grid_sample_20(site: Site) -> None:
    mode = site.attribute("mode", "bilinear")
    site.set("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _group_normalization_21(site: Site) -> None:
    """Scale and bias per group become scale and bias per channel: each is repeated C / groups times."""
    groups = site.constant([site.attribute("num_groups")], INT64)
    channels = site.add("Shape", [site.node.input[0]], start=1, end=2)
    shape = site.add("Concat", [site.constant([1], INT64), site.add("Div", [channels, groups])], axis=0)
    column, flat = site.constant([-1, 1], INT64), site.constant([-1], INT64)
    for index in (1, 2):
        repeated = site.add("Expand", [site.add("Reshape", [site.node.input[index], column]), shape])
        site.node.input[index] = site.add("Reshape", [repeated, flat])
    element = site.scope.element(site.node.input[0])
    # Up to 20 everything is computed in the input's own type.
    if element is not None and element in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        site.set("stash_type", element)


def _attention_25(site: Site) -> None:
    """The scores that the fourth output may give lose the causal mask in mode 2."""
    if site.output(3) and site.attribute("is_causal", 0) and site.attribute("qk_matmul_output_mode", 0) == 2:
        raise RefusedError("its masked scores (qk_matmul_output_mode=2) have no form at newer opsets")


def _mean_variance_normalization_13(site: Site) -> None:
    """The checker expands the operator from 13 on, and finds no axes where they are left to their default."""
    site.set("axes", site.attribute("axes", [0, 2, 3]))


_REDUCED = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("Attention", 25): _attention_25,
    **{(op, 7): _broadcast_7 for op in ("Add", "Div", "Gemm", "Mul", "Pow", "Sub")},
    ("BatchNormalization", 7): _inference_7,
    ("BatchNormalization", 9): _batch_normalization_9,
    ("BatchNormalization", 14): _batch_normalization_14,
    ("Clip", 11): _clip_11,
    ("DFT", 20): _dft_20,
    ("Dropout", 7): _inference_7,
    ("Dropout", 10): _dropout_10,
    ("Dropout", 12): _dropout_12,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_normalization_21,
    ("Hardmax", 13): _softmax_13,
    ("LogSoftmax", 13): _softmax_13,
    ("MeanVarianceNormalization", 13): _mean_variance_normalization_13,
    ("Pad", 11): _pad_11,
    ("ReduceSum", 13): _axes_input,
    ("Resize", 11): _resize_11,
    ("RoiAlign", 16): _roi_align_16,
    ("Scan", 9): _scan_9,
    ("Scatter", 11): _scatter_11,
    ("Slice", 10): _slice_10,
    ("Softmax", 13): _softmax_13,
    ("Split", 13): _split_13,
    ("Split", 18): _split_18,
    ("Squeeze", 13): _axes_input,
    ("TopK", 10): _topk_10,
    ("Unsqueeze", 13): _axes_input,
    ("Upsample", 9): _upsample_9,
    ("Upsample", 10): _upsample_10,
    **{(op, 18): _axes_input for op in _REDUCED},
}
