"""The few functions of the Python interface that join several parts; `import onnxq as oq` gives them."""

from __future__ import annotations

from pathlib import Path

from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset, Preprocess, input_specs
from onnxq.data import open_dataset as _open_dataset
from onnxq.evaluation import Score, evaluate_file
from onnxq.rounding import DataRounder
from passes.core.base import Context, RangeProvider
from passes.graph.model import Model

__all__ = ["calibrate", "evaluate", "open_dataset", "range_provider"]


def open_dataset(
    spec: str | Path,
    model: Model,
    *,
    preprocess: str | Path | Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Data as samples for `model`: a folder, .npz, .npy, .zip, module:callable or hf:NAME.

    Raises DataError for what cannot be read or does not fit the model.
    """
    return _open_dataset(spec, input_specs(model.proto), preprocess=preprocess, limit=limit, seed=seed)


def range_provider(
    dataset: Dataset, method: str = "percentile:99.99", threads: int | None = None
) -> RangeProvider:
    """Calibrated activation ranges in the form that passes ask for."""
    return CalibratedRanges(dataset, method, threads=threads)


def calibrate(dataset: Dataset, method: str = "percentile:99.99", threads: int | None = None) -> Context:
    """A context for passes that lends them what `dataset` shows, activation ranges and data-aware rounding:
    `Quantize(weights="gse4", activations="float", rounding="gptq")(model, calibrate(data))`."""
    # Imported late: training's pictures load matplotlib.
    from onnxq.training import BlockRounder

    rounder = BlockRounder(DataRounder(dataset, damping=None, threads=threads))
    return Context(ranges=range_provider(dataset, method, threads), rounder=rounder)


def evaluate(
    model: Model,
    dataset: Dataset,
    reference: Model | None = None,
    *,
    metric: str | object = "",
    chunk: int = 0,
    threads: int = 1,
) -> Score:
    """Quality of a model on labelled data, or against `reference`, the float model.

    metric: a name, `module:Class`, or an object (`oq.Metric`); by default accuracy for labelled data and
    agreement with `reference` otherwise, with what is measured beside them.

    Raises DataError where the metric needs labels or a reference and there is none.
    """
    return evaluate_file(model, dataset, reference, metric=metric, chunk=chunk, threads=threads)
