"""What a model takes, and how a sample is made to fit it or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from onnxq.data.preprocess import Preprocess
from passes.core.errors import DataError

__all__ = [
    "InputSpec",
    "Sample",
    "conform",
    "fit_batch",
    "has_batch_axis",
    "input_specs",
    "sample_size",
    "sole_input",
]

Sample = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class InputSpec:
    """One model input; `shape` includes the batch axis, with int for fixed and str or None for free dims."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """The inputs that a caller must feed (initializers excluded), in graph order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            raise DataError(
                f"model input '{value.name}' has no tensor shape; export the model with input shapes."
            )
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(InputSpec(value.name, dtype, tuple(_dim(dim) for dim in tensor.shape.dim)))
    return specs


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    # Exporters write -1 and 0 for a dimension that they do not know.
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None


def has_batch_axis(inputs: Sequence[InputSpec]) -> bool:
    """Whether axis 0 of every input can be one common batch axis."""
    fixed = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)}
    return all(spec.shape for spec in inputs) and len(fixed) <= 1


def sample_size(specs: Sequence[InputSpec]) -> int:
    """Numbers that one sample feeds; dimensions that the model leaves open count as 1."""
    return sum(math.prod(d if isinstance(d, int) else 1 for d in spec.shape[1:]) for spec in specs)


def fit_batch(size: int, inputs: Sequence[InputSpec]) -> int:
    """The batch size to use where `size` is wished: the model's own when its batch axis is fixed."""
    if size < 1:
        raise DataError(f"batch size {size} is not positive; use 1 or more.")
    fixed = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)]
    return fixed[0] if fixed and has_batch_axis(inputs) else size


def sole_input(inputs: Sequence[InputSpec], origin: str) -> InputSpec:
    """The one input that unnamed data belongs to; raises DataError when the model has several."""
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs) or "none"
        raise DataError(
            f"{origin}: unnamed data for a model with inputs {names}; give one array per input name."
        )
    return inputs[0]


def conform(
    sample: Mapping[str, NDArray[Any]],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    origin: str,
    *,
    whole: bool = False,
) -> Sample:
    """The sample with images preprocessed, in the model's dtypes and shapes; DataError names `origin`.

    Arrays have no batch axis, unless `whole` says that they are a complete feed.
    """
    missing = [spec.name for spec in inputs if spec.name not in sample]
    if missing:
        raise DataError(
            f"{origin}: no data for model input {', '.join(missing)}; it has {', '.join(sample)}."
        )
    out: Sample = {}
    prepared = False
    for spec in inputs:
        array = np.asarray(sample[spec.name])
        if preprocess is not None and array.dtype == np.uint8 and array.ndim == 3:
            array, prepared = _prepare(array, preprocess, origin), True
        elif array.dtype == np.uint8 and array.ndim == 3 and np.issubdtype(spec.dtype, np.floating):
            raise DataError(
                f"{origin}: 8-bit images for the float input '{spec.name}'; "
                "give `preprocess` ('none' for raw pixels)."
            )
        elif preprocess is not None and _is_wide_picture(array):
            raise DataError(
                f"{origin}: `preprocess` is for 8-bit images, and these are {array.dtype}; scale them to "
                "0..255 and save them as uint8."
            )
        out[spec.name] = _cast(array, spec, origin)
        _check_shape(out[spec.name].shape, spec, origin, whole)
    if preprocess is not None and not prepared:
        raise DataError(
            f"{origin}: `preprocess` is for 8-bit images, these arrays are used as they are; drop it."
        )
    return out


def _is_wide_picture(array: NDArray[Any]) -> bool:
    """Whether it looks like an image of 16 bits a channel."""
    return array.dtype in (np.uint16, np.int16) and array.ndim == 3 and 3 in (array.shape[0], array.shape[2])


def _prepare(array: NDArray[Any], preprocess: Preprocess, origin: str) -> NDArray[Any]:
    if array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.shape[2] != 3:
        raise DataError(
            f"{origin}: 8-bit array of shape {_text(array.shape)} is no RGB image; use HxWx3 or 3xHxW."
        )
    try:
        return preprocess.apply(Image.fromarray(np.ascontiguousarray(array)))
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error


def _cast(array: NDArray[Any], spec: InputSpec, origin: str) -> NDArray[Any]:
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise DataError(
            f"{origin}: data of type {array.dtype} cannot feed '{spec.name}' ({spec.dtype}); convert it."
        )
    with np.errstate(invalid="ignore"):
        cast = array.astype(spec.dtype)
    # Floats may round to the model's precision; an index or a pixel must survive exactly.
    if spec.dtype.kind in "biu" and not np.array_equal(cast, array):
        raise DataError(
            f"{origin}: {array.dtype} values do not fit {spec.dtype}, "
            f"the type of model input '{spec.name}'; convert them."
        )
    return cast


def _check_shape(shape: tuple[int, ...], spec: InputSpec, origin: str, whole: bool) -> None:
    wanted = spec.shape if whole else spec.shape[1:]
    fits = len(shape) == len(wanted) and all(
        not isinstance(want, int) or have == want for have, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        raise DataError(
            f"{origin}: a sample has shape {_text(shape)} but model input '{spec.name}' takes "
            f"{_text(wanted)}; choose a `preprocess` (preset or FILE.json) or data with that size and layout."
        )


def _text(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "scalar"
