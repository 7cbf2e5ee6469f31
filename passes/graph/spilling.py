"""Values that passes make of models over 2 GB, in temporary files: tensors become references to them.

The values of passes lie in one file that lives as long as the command, in Python as the process: nobody knows
who holds a copy of a tensor that refers to it. Who knows for how long values are wanted makes a `Store`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from passes.core.errors import OutputError
from passes.graph.external_data import point, raw_chunks, write_values
from passes.graph.scratch import Scratch
from passes.graph.tensors import stored_bytes

__all__ = ["Store", "release", "spill", "spill_array"]

Array = npt.NDArray[Any]


class Store:
    """A temporary file of values, which goes with this object.

    Raises:
        OutputError: the folder for temporary files cannot be written.
    """

    def __init__(self) -> None:
        try:
            self._scratch = Scratch()
        except OSError as error:
            raise _no_room(error) from None
        self._path = self._scratch.path / "values.bin"
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove the file now."""
        self._scratch.close()

    def add(self, values: Array, name: str) -> onnx.TensorProto:
        """A reference to an array, whose type numpy itself has, that is written to the file.

        Raises:
            OutputError: the folder for temporary files is full or cannot be written.
        """
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        light = onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.write(light, [flat.data])
        return light

    def write(self, light: onnx.TensorProto, pieces: Iterable[bytes | memoryview]) -> None:
        """Append the values of a tensor and let it refer to them. Raises as `add` does."""
        try:
            with self._lock, self._path.open("ab") as handle:
                offset, length = write_values(handle, pieces, stored_bytes(light))
        except OSError as error:
            raise _no_room(error) from None
        point(light, str(self._path), offset, length)


_STORES: dict[int, Store] = {}


def _no_room(error: OSError) -> OutputError:
    return OutputError(
        f"the weights of a model over 2 GB cannot be written to the folder for temporary files "
        f"({error.strerror}); set TMPDIR to a folder with more room"
    )


def release() -> None:
    """Remove what the passes of this process have put aside; no model of theirs may be used any more."""
    store = _STORES.pop(os.getpid(), None)
    if store is not None:
        store.close()  # an error on its way may still hold the store


def _own_store() -> Store:
    """The store of this process; a forked one makes its own."""
    process = os.getpid()
    if process not in _STORES:
        _STORES[process] = Store()
    return _STORES[process]


def spill(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor as a reference to a temporary file that its values are written to.

    Raises:
        OutputError: the folder for temporary files is full or cannot be written.
    """
    light = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    light.doc_string = tensor.doc_string
    _own_store().write(light, raw_chunks(tensor))
    return light


def spill_array(values: Array, name: str) -> onnx.TensorProto:
    """As `spill`, of an array whose type numpy itself has."""
    return _own_store().add(values, name)
