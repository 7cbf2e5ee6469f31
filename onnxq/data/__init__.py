"""Data: sources, preprocessing and datasets that stream batches."""

from onnxq.data.dataset import Batch, Dataset, Source, SourceDataset
from onnxq.data.inputs import InputSpec, fit_batch, input_specs
from onnxq.data.kind import Kind
from onnxq.data.memory import MemoryDataset, materialise, random_dataset
from onnxq.data.preprocess import PRESETS, Preprocess, resolve
from onnxq.data.sources import check_labels, forms, open_dataset, require_labels, runs_code

__all__ = [
    "PRESETS",
    "Batch",
    "Dataset",
    "InputSpec",
    "Kind",
    "MemoryDataset",
    "Preprocess",
    "Source",
    "SourceDataset",
    "check_labels",
    "fit_batch",
    "forms",
    "input_specs",
    "materialise",
    "open_dataset",
    "random_dataset",
    "require_labels",
    "resolve",
    "runs_code",
]
