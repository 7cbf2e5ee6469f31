"""How a session gets weights that are not in the model itself: decoded bit streams, and files over 2 GB."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

import passes.graph.model
from passes.decode import decode_each, decode_weights, decoded_bytes
from passes.graph.external_data import element_type, fill, has_references, mapped, point, reference
from passes.graph.light import without_values
from passes.graph.model import Model, is_large
from passes.graph.spilling import Store

__all__ = ["float_bytes", "hand_over", "is_outside", "without_weights"]

# Where the values of a placeholder are: the session is given them apart.
_DECODED = "handed over by onnxq"
_FOLDER = "session.model_external_initializers_file_folder_path"


def float_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the initializers as ONNX Runtime holds them once it has decoded quantized ones to float."""
    held: int = sum(4 * math.prod(tensor.dims) for tensor in proto.graph.initializer)
    return held + decoded_bytes(proto)


def hand_over(model: Model, options: ort.SessionOptions, own: bool) -> tuple[Model, list[Any]]:
    """The model without its bit streams, and the decoded weights, which `options` hands to ONNX Runtime.

    External initializers are what ONNX Runtime fuses, lays out and prepacks like weights of the file.
    The values must live as long as the session. own: the model is nobody else's and may be taken apart.
    """
    if float_bytes(model.proto) > passes.graph.model.LARGE:
        # What is handed over is copied; a temporary file is mapped.
        store = Store()
        try:
            held, tensors = decode_each(model, store.add, own=own)
        except BaseException:
            store.close()  # the error on its way still holds it
            raise
        held.proto.graph.initializer.extend(tensors)
        return held, [store]
    held, arrays = decode_weights(model, own=own)
    for name, array in arrays.items():
        held.proto.graph.initializer.append(_placeholder(name, array))
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    return held, values


def is_outside(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime cannot be given the model as bytes."""
    return is_large(proto) or has_references(proto)


def without_weights(model: Model, options: ort.SessionOptions) -> tuple[Model, dict[str, npt.NDArray[Any]]]:
    """A model over 2 GB without its large weights, and those by name that ONNX Runtime has to be handed.

    What is in a file is read by ONNX Runtime from there: handed over, it would be copied. It wants one folder
    for all of them, so that is the root. Types that numpy does not have itself stay in the model.
    """
    light = without_values(model.proto)
    arrays: dict[str, npt.NDArray[Any]] = {}
    root = Path.cwd().anchor
    for name, tensor in light.weights.items():
        if tensor.external_data and tensor.external_data[0].value == _DECODED:
            continue
        source = reference(tensor)
        if source is not None and source.path.anchor == root:
            light.weights[name] = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
            point(light.weights[name], source.path.relative_to(root).as_posix(), source.offset, source.length)
        elif element_type(tensor).kind in "biuf":
            arrays[name] = mapped(tensor)
            light.weights[name] = _placeholder(name, arrays[name])
        else:
            light.weights[name] = onnx.TensorProto.FromString(tensor.SerializeToString())
            fill(light.weights[name])
    options.add_session_config_entry(_FOLDER, root)
    light.restore(light.proto)
    return model.with_proto(light.proto), arrays


def _placeholder(name: str, array: npt.NDArray[Any]) -> onnx.TensorProto:
    """An initializer whose values somebody else brings."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_DECODED)
    return tensor
