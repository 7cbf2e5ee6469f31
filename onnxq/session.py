"""ONNX Runtime sessions: the one door through which everything in onnxq runs a model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError

import passes.graph.model
from onnxq.machine import saturates
from passes.core.errors import InvalidModelError, UnsupportedModelError
from passes.decode import decode_weights, has_packed_weights
from passes.graph.external_data import KEPT_BYTES, element_type, fill, has_references, mapped
from passes.graph.light import without_values
from passes.graph.model import Model, every_graph, is_large, load, on_disk

__all__ = [
    "float_weights_only",
    "load_session",
    "plain_session",
    "refuse_unknown_ops",
    "stock_session",
    "surviving_qdq",
]

_STANDARD_DOMAINS = {
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "com.ms.internal.nhwc",
    "ai.onnx.preview.training",
}
# Where the values of a placeholder are: the session is given them apart.
_DECODED = "handed over by onnxq"
_OPTIMIZED = "session.optimized_model_external_initializers_"


def refuse_unknown_ops(model: Model) -> None:
    """Raise UnsupportedModelError for the first op that neither ONNX Runtime nor the file itself defines."""
    known = {(function.domain, function.name) for function in model.proto.functions}
    for graph in every_graph(model.proto.graph):
        for node in graph.node:
            standard = node.domain in _STANDARD_DOMAINS
            if node.domain in ("", "ai.onnx"):
                standard = onnx.defs.has(node.op_type)
            if not standard and (node.domain, node.op_type) not in known:
                label = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                raise UnsupportedModelError(
                    f"{model.name}: node '{node.name or node.output[0]}' uses the op {label}, which neither "
                    "ONNX Runtime nor the file defines; replace it, or export its body as an ONNX function"
                )


def float_weights_only(model: Model) -> bool:
    """Whether weights are quantized and no activation is: then every DequantizeLinear can be folded."""
    ops = {node.op_type for node in model.proto.graph.node}
    return "DequantizeLinear" in ops and not ops & {"QuantizeLinear", "DynamicQuantizeLinear"}


def session_options(threads: int | None, fold_weights: bool) -> ort.SessionOptions:
    """Options of a session; `threads` None leaves the number to ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions too
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if saturates():
        # Otherwise accuracy would be this CPU's, not the file's.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if fold_weights:
        # Otherwise ONNX Runtime keeps every DequantizeLinear of a constant and runs it each time.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _hand_over(model: Model, options: ort.SessionOptions, own: bool) -> tuple[Model, list[Any]]:
    """The model without its bit streams, and the decoded weights, which `options` hands to ONNX Runtime.

    External initializers are what ONNX Runtime fuses, lays out and prepacks like weights of the file.
    The values must live as long as the session. own: the model is nobody else's and may be taken apart.
    """
    held, arrays = decode_weights(model, own=own)
    for name, array in arrays.items():
        held.proto.graph.initializer.append(_placeholder(name, array))
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    return held, values


def _is_outside(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime cannot be given the model as bytes."""
    return is_large(proto) or has_references(proto)


def _without_weights(model: Model) -> tuple[Model, dict[str, npt.NDArray[Any]]]:
    """A model over 2 GB with placeholders, and the large weights by name, mapped from their files.

    Types that numpy does not have itself, such as bfloat16 and int4, stay in the model.
    """
    light = without_values(model.proto)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in light.weights.items():
        if tensor.external_data and tensor.external_data[0].value == _DECODED:
            continue
        if element_type(tensor).kind in "biuf":
            arrays[name] = mapped(tensor)
            light.weights[name] = _placeholder(name, arrays[name])
        else:
            light.weights[name] = onnx.TensorProto.FromString(tensor.SerializeToString())
            fill(light.weights[name])
    light.restore(light.proto)
    return model.with_proto(light.proto), arrays


def _placeholder(name: str, array: npt.NDArray[Any]) -> onnx.TensorProto:
    """An initializer whose values somebody else brings."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_DECODED)
    return tensor


def load_session(
    model: Model | str | Path,
    *,
    threads: int | None = None,
    optimized: Path | None = None,
    arena: bool = True,
    fuse: bool = True,
    configure: Callable[[ort.SessionOptions], Sequence[Any]] | None = None,
) -> Any:
    """An ONNX Runtime session of a model or file, on the CPU unless `configure` says otherwise.

    Weights that are quantized alone are folded to float at load time, so that they cost nothing at run time;
    those that stand as bit streams are decoded here and handed over as float. optimized: where to write ONNX
    Runtime's own optimised graph. arena: False for one of many sessions that live side by side: each arena
    keeps the peak of its session. fuse: False keeps every operator as it stands, so that inner tensors can be
    read. configure: sets further options and returns the execution providers, in the form that ONNX Runtime
    takes them (none where the options name devices themselves).
    Raises UnsupportedModelError for unknown ops, InvalidModelError when ONNX Runtime refuses the model.
    """
    held = model if isinstance(model, Model) else load(model)
    refuse_unknown_ops(held)
    options = session_options(threads, float_weights_only(held))
    options.enable_cpu_mem_arena = arena
    if not fuse:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # Weights that ONNX Runtime has decoded may be more than one file can hold.
        options.add_session_config_entry(f"{_OPTIMIZED}file_name", f"{optimized.name}.data")
        options.add_session_config_entry(f"{_OPTIMIZED}min_size_in_bytes", str(KEPT_BYTES))
    providers = ["CPUExecutionProvider"] if configure is None else list(configure(options))
    path = None if isinstance(model, Model) else Path(model)
    kept: list[Any] = []
    if has_packed_weights(held.proto):
        held, kept = _hand_over(held, options, own=path is not None)
        path = None
    with _refusals(held.name):
        session = _open(held, path, options, providers)
    session._onnxq_weights = kept
    return session


def stock_session(model: Model | Path, name: str) -> Any:
    """A session as anybody else would open it: ONNX Runtime's default options, on the CPU, none of our code.

    name: of the model in messages. Raises InvalidModelError when ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    held = model if isinstance(model, Model) else Model(onnx.ModelProto(), name)
    with _refusals(name):
        return _open(held, model if isinstance(model, Path) else None, options, ["CPUExecutionProvider"])


def plain_session(model: Model) -> Any:
    """A session that optimises nothing, so that every tensor can be read and arithmetic is in another order.

    Raises InvalidModelError when ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with _refusals(model.name):
        return _open(model, None, options, ["CPUExecutionProvider"])


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """ONNX Runtime's refusal to load a model as an InvalidModelError; its exceptions share no base class."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, (RuntimeError, UnicodeDecodeError))
        if not known and not type(error).__module__.startswith("onnxruntime"):
            raise
        raise InvalidModelError(f"{name}: ONNX Runtime cannot load it: {_first_line(error)}") from None


def _float_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the initializers as ONNX Runtime holds them once it has decoded quantized ones to float."""
    return sum(4 * math.prod(tensor.dims) for tensor in proto.graph.initializer)


def _open(model: Model, path: Path | None, options: ort.SessionOptions, providers: list[Any]) -> Any:
    """path: the file that holds exactly this model and need not be written again; None without one."""
    if _float_bytes(model.proto) > passes.graph.model.LARGE:
        # A kernel's own copy of its weights is worth its memory only while that is small.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if path is not None:
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    kept: list[Any] = []
    if _is_outside(model.proto):
        model, arrays = _without_weights(model)
        kept = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), kept)
    try:
        content = model.proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):  # more than 2 GB of types that cannot be handed over
        with on_disk(model) as path:
            return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    session = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    # ONNX Runtime keeps a second copy of every weight here, for a change of providers that never comes.
    session._model_bytes = None
    session._onnxq_mapped = kept  # the values must live as long as the session
    return session


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:300]


def surviving_qdq(model: Model, folder: Path) -> dict[str, int]:
    """Counts of QuantizeLinear and DequantizeLinear left in ONNX Runtime's optimised graph."""
    target = folder / "optimized.onnx"
    load_session(model, threads=1, optimized=target)
    proto = onnx.load(target, load_external_data=False)
    counts = {"QuantizeLinear": 0, "DequantizeLinear": 0}
    for graph in every_graph(proto.graph):
        for node in graph.node:
            if node.op_type in counts:
                counts[node.op_type] += 1
    return counts
