"""Checks of data against a model that several commands make."""

from __future__ import annotations

from onnxq.data import Dataset, check_labels
from onnxq.public import open_dataset, range_provider
from passes.graph.model import Model

__all__ = ["checked_labels", "open_for", "range_provider"]


def open_for(model: Model, spec: str, preprocess: str | None, limit: int, seed: int) -> Dataset:
    """The data as samples for this model. Raises DataError for what cannot be read or does not fit."""
    return open_dataset(spec, model, preprocess=preprocess, limit=limit or None, seed=seed)


def checked_labels(model: Model, dataset: Dataset) -> None:
    """Raise DataError for a label that is no class of the model; unlabelled data pass."""
    from onnxq.evaluation import load_session
    from onnxq.metrics import logits_of

    if dataset.labelled:
        first = next(dataset.batches(1, 0, 1))
        session = load_session(model, threads=1)
        check_labels(dataset, logits_of(session.run(None, first.inputs)).shape[1])
