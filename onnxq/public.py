"""The few functions of the Python interface that join several parts; `import onnxq as oq` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import onnx

from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset, Preprocess, input_specs
from onnxq.data import open_dataset as _open_dataset
from onnxq.evaluation import Score, evaluate_file
from onnxq.rounding import DataRounder
from passes.core.base import Context, PassResult, RangeProvider
from passes.graph.model import Model, load
from passes.placement.insertion import Rounding
from passes.policy import Policy
from passes.preparation import preparation
from passes.quantize import Quantize

__all__ = ["AnyModel", "as_model", "calibrate", "evaluate", "open_dataset", "quantize", "range_provider"]

AnyModel = Model | onnx.ModelProto | str | PathLike[str]
"""A model as callers hold it: of `oq.load`, a proto in memory, or a path."""


def as_model(model: AnyModel) -> Model:
    """The model itself, in memory or loaded. Raises ModelFileError for a path that holds none."""
    if isinstance(model, Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return Model(model)
    return load(model)


def open_dataset(
    spec: object,
    model: AnyModel,
    *,
    preprocess: str | Path | Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Data as samples for `model`: a folder, .npz, .npy, .zip, module:callable or hf:NAME; or what a program
    holds: an array, a dict of arrays by input name, an iterable of them or of pairs (x, y), a Dataset.

    Raises DataError for what cannot be read or does not fit the model.
    """
    inputs = input_specs(as_model(model).proto)
    return _open_dataset(spec, inputs, preprocess=preprocess, limit=limit, seed=seed)


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


def quantize(
    model: AnyModel,
    data: object = None,
    *,
    weights: str = "int8:channel",
    activations: str = "uint8",
    rounding: Rounding = "nearest",
    policy: Policy | str = "",
    exclude: Sequence[str] = (),
    standard: bool = False,
    fold: bool = True,
    calibration: str = "percentile:99.99",
    calibration_samples: int = 100,
    preprocess: str | Path | Preprocess | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> PassResult:
    """One quantized model, as `onnxq quantize` makes it.

        result = oq.quantize("model.onnx", images, weights="int4:channel", rounding="gptq")
        oq.save(result.model, "small.onnx")

    Args:
        model: a path, a Model or a ModelProto; it is not changed.
        data: what `open_dataset` takes. Needed for static activations and for rounding on data.
        weights, activations: schemes, as in `uint4:block32`; `uint8:dynamic` and `float` need no data.
        rounding: nearest, analytic, bias, gptq, adaround or brecq.
        policy: schemes layer by layer instead, as an object, a file or its JSON text.
        exclude: selectors of layers that stay float.
        standard: only types that ONNX has. fold: simplify and fold BatchNormalization first.
        calibration: how activation ranges are found. calibration_samples: on how many samples at most.
        preprocess: for 8-bit images. seed: for the choice of samples.
        threads: None leaves their number to ONNX Runtime.

    Returns:
        The model, and the notes of the passes.

    Raises:
        UserError: a scheme, a policy, data or a model that does not fit, in one sentence.
    """
    given = as_model(model)
    text = policy if isinstance(policy, str) else Quantize.of(policy).policy
    last = Quantize(weights, activations, tuple(exclude), text, standard, rounding)
    recipe = preparation() | last if fold else last
    if data is None:
        return recipe(given, Context())
    dataset = open_dataset(data, given, preprocess=preprocess, limit=calibration_samples, seed=seed)
    return recipe(given, calibrate(dataset, calibration, threads))


def evaluate(
    model: AnyModel,
    data: object,
    reference: AnyModel | None = None,
    *,
    metric: str | object = "",
    chunk: int = 0,
    threads: int = 1,
) -> Score:
    """Quality of a model on labelled data, or against `reference`, the float model.

    data: a Dataset, or what `open_dataset` takes. metric: a name, `module:Class`, or an object (`oq.Metric`);
    by default accuracy for labelled data and agreement with `reference` otherwise, with what is measured
    beside them.

    Raises DataError where the metric needs labels or a reference and there is none.
    """
    given, against = as_model(model), None if reference is None else as_model(reference)
    dataset = data if isinstance(data, Dataset) else open_dataset(data, given)
    return evaluate_file(given, dataset, against, metric=metric, chunk=chunk, threads=threads)
