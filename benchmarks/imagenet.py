"""What the EfficientNet-Lite0 benchmarks share: the model, the split, the quantizer they compare with.

Split of ../shared/data/imagenet-500: numpy's default_rng(0).permutation(500); the first 100 positions (in
the order of labels.txt) are for calibration, the other 400 for evaluation. The names stand in
benchmarks/imagenet500_split.txt. It is the split that `onnxq tune --calibration-samples 100 --seed 0` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxq.data import Dataset, input_specs, materialise, open_dataset
from passes import FoldBatchNorm, Model, Simplify, load

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = SHARED / "models" / "efficientnet_lite0.onnx"
DATA = SHARED / "data" / "imagenet-500"
SPLIT = Path(__file__).with_name("imagenet500_split.txt")
CALIBRATION = 100


def prepared() -> Model:
    """EfficientNet-Lite0, simplified, BatchNorm folded."""
    return (Simplify() | FoldBatchNorm())(load(MODEL)).model


def split(model: Model, held: bool = True) -> tuple[Dataset, Dataset]:
    """(calibration, evaluation), decoded once and held in memory; not held: decoded when they are read."""
    data = open_dataset(DATA, input_specs(model.proto), preprocess="efficientnet-lite")
    order = np.random.default_rng(0).permutation(len(data))
    names = [line.split()[0] for line in (DATA / "labels.txt").read_text().splitlines()]
    text = "".join(
        f"{part} {names[i]}\n"
        for part, chosen in (
            ("calibration", sorted(order[:CALIBRATION])),
            ("evaluation", order[CALIBRATION:]),
        )
        for i in chosen
    )
    if not SPLIT.exists():
        SPLIT.write_text(text)
    if SPLIT.read_text() != text:
        raise SystemExit(f"{SPLIT}: the split is not the one that was written down")
    parts = [sorted(order[:CALIBRATION].tolist()), order[CALIBRATION:].tolist()]
    calibration, evaluation = (data.subset(part) for part in parts)
    if not held:
        return calibration, evaluation
    return materialise(calibration, 2**31), materialise(evaluation, 2**31)


def quantize_with_onnxruntime(
    model: Model,
    target: Path,
    calibration: Dataset,
    *,
    per_channel: bool,
    exclude: Sequence[str] = (),
    weights_only: bool = False,
    method: str = "MinMax",
    weight_bits: int = 8,
) -> None:
    """onnxruntime.quantization's QDQ file for the same prepared model and calibration images."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = calibration.batches(1)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(batch.inputs)

    source = target.with_suffix(".float.onnx")
    onnx.save(model.proto, source)
    if weights_only:
        _weights_only(model, target, per_channel)
        return
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt4 if weight_bits == 4 else QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        nodes_to_exclude=list(exclude),
    )


def _weights_only(model: Model, target: Path, per_channel: bool) -> None:
    """onnxruntime.quantization has no weights-only mode for Conv: its weight arithmetic, back as float."""
    from onnx import numpy_helper
    from onnxruntime.quantization.quant_utils import QuantType, quantize_data

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    weights = {node.input[1] for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    for tensor in proto.graph.initializer:
        if tensor.name not in weights:
            continue
        array = numpy_helper.to_array(tensor)
        parts = [array] if not per_channel else [array[i] for i in range(array.shape[0])]
        done = []
        for part in parts:
            zero, scale, codes = quantize_data(part, QuantType.QInt8.tensor_type, symmetric=True)[-3:]
            done.append(
                (np.asarray(codes, np.float32).reshape(part.shape) - np.float32(zero)) * np.float32(scale)
            )
        result = done[0] if not per_channel else np.stack(done)
        tensor.CopyFrom(numpy_helper.from_array(result.astype(np.float32), tensor.name))
    onnx.save(proto, target)
