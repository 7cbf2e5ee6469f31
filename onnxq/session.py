"""ONNX Runtime sessions: the one door through which everything in onnxq runs a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError

import passes.graph.model
from onnxq.machine import saturates
from onnxq.session_weights import float_bytes, hand_over, is_outside, without_weights
from passes.core.errors import InvalidModelError, UnsupportedModelError
from passes.decode import decoded_bytes, has_packed_weights
from passes.graph.external_data import KEPT_BYTES
from passes.graph.model import Model, every_graph, load, on_disk

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
# Bytes of floats in bit streams up to which a stock session may fold them.
FOLDED_BYTES = 2**27
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
        held, kept = hand_over(held, options, own=path is not None)
        path = None
    _spare_memory(held.proto, options)
    name = held.name
    if path is not None:
        held = Model(onnx.ModelProto(), name)  # ONNX Runtime reads the file itself
    with _refusals(name):
        session = _open(held, path, options, providers)
    session._onnxq_weights = kept
    return session


def stock_session(model: Model, path: Path | None = None) -> Any:
    """A session as anybody else would open it: ONNX Runtime's default options, on the CPU, none of our code.

    path: the file that holds exactly this model, where there is one. Bit streams of many floats are decoded
    in each run, by the file's own functions too: folding them, ONNX Runtime would keep what lies between
    codes and floats of all layers at once, ten times the floats.
    Raises InvalidModelError when ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if path is None:
        _spare_memory(model.proto, options)
    unwanted = ["ConstantFolding"] if decoded_bytes(model.proto) > FOLDED_BYTES else []
    with _refusals(model.name):
        return _open(model, path, options, ["CPUExecutionProvider"], unwanted)


def plain_session(model: Model) -> Any:
    """A session that optimises nothing, so that every tensor can be read and arithmetic is in another order.

    Raises InvalidModelError when ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    _spare_memory(model.proto, options)
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


def _spare_memory(proto: onnx.ModelProto, options: ort.SessionOptions) -> None:
    """A kernel's own copy of its weights is worth its memory only while that is small."""
    if float_bytes(proto) > passes.graph.model.LARGE:
        options.add_session_config_entry("session.disable_prepacking", "1")


def _open(
    model: Model,
    path: Path | None,
    options: ort.SessionOptions,
    providers: list[Any],
    unwanted: Sequence[str] = (),
) -> Any:
    """path: the file that holds exactly this model and need not be written again; None without one.

    unwanted: optimizers of ONNX Runtime that are left out.
    """

    def session(source: str | bytes) -> Any:
        return ort.InferenceSession(
            source, options, providers=providers, enable_fallback=0, disabled_optimizers=list(unwanted)
        )

    if path is not None:
        return session(str(path))
    kept: list[Any] = []
    if is_outside(model.proto):
        model, arrays = without_weights(model, options)
        kept = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), kept)
    try:
        content = model.proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):  # more than 2 GB of types that cannot be handed over
        with on_disk(model) as path:
            return session(str(path))
    opened = session(content)
    # ONNX Runtime keeps a second copy of every weight here, for a change of providers that never comes.
    opened._model_bytes = None
    opened._onnxq_mapped = kept  # the values must live as long as the session
    return opened


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:300]


def surviving_qdq(model: Model | Path, folder: Path) -> dict[str, int]:
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
