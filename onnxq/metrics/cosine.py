"""cosine: the cosine between the model's outputs and the float model's, of each sample's worst output.

For embeddings, whose direction is what counts: a . b / (|a| |b|) of the flattened outputs of a sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.metrics.base import Outputs, SampleMetric, Values
from passes.core.errors import DataError

__all__ = ["Cosine"]


class Cosine(SampleMetric):
    """Mean over the samples of the least cosine of any output. Every output must have the batch first."""

    name = "cosine"
    label = "cosine to float"
    digits = 5
    needs_reference = True
    races = True

    def score(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> Values:
        assert reference is not None  # needs_reference
        if list(outputs) != list(reference):
            theirs = ", ".join(reference)
            raise DataError(
                f"the model's outputs are {', '.join(outputs)}, those of the float model {theirs}"
            )
        each = [_cosines(name, array, reference[name], self.samples) for name, array in outputs.items()]
        lengths = {len(values) for values in each}
        if len(lengths) > 1:
            raise DataError(
                "the outputs are not all [batch, ...]: they have "
                + ", ".join(f"'{name}' {array.shape}" for name, array in outputs.items())
            )
        worst: Values = np.min(each, axis=0)
        return worst


def _rows(array: npt.NDArray[Any], name: str, whose: str, first: int) -> npt.NDArray[np.float64]:
    """An output as one row a sample; raises DataError for one that has no direction."""
    rows = np.asarray(array, np.float64).reshape(len(array) if array.ndim > 1 else 1, -1)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        sample = first + int(bad.argmax())
        raise DataError(f"{whose} gives NaN or infinity for sample {sample} in its output '{name}'")
    return rows


def _cosines(name: str, found: npt.NDArray[Any], wanted: npt.NDArray[Any], first: int) -> Values:
    """The cosine of each row. Two rows of zeros count as equal; one alone has nothing in common with any."""
    if found.shape != wanted.shape:
        raise DataError(f"output '{name}' is {found.shape}, that of the float model {wanted.shape}")
    a, b = _rows(found, name, "the model", first), _rows(wanted, name, "the float model", first)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    equal = ~(a.any(axis=1) | b.any(axis=1))
    # Rounding puts the cosine of a vector with itself above 1.
    return np.where(equal, 1.0, np.clip(cosines, -1.0, 1.0))
