"""Random inputs, for what does not depend on their values: whether a model runs, and how fast."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.data import input_specs
from passes.model import Model

__all__ = ["made_up_feed"]

# Numbers in one input; more is a slip in the declaration.
_MOST = 2**28


def made_up_feed(model: Model, batch: int = 1, seed: int = 0) -> dict[str, npt.NDArray[Any]] | None:
    """One feed for the model: `batch` in place of a free first dimension, 1 in place of the other free ones.

    None when an input has no tensor shape, is text, or is declared larger than memory.
    """
    if any(not value.type.tensor_type.HasField("shape") for value in model.proto.graph.input):
        return None
    rng = np.random.default_rng(seed)
    feed: dict[str, npt.NDArray[Any]] = {}
    for spec in input_specs(model.proto):
        free = [batch, *[1] * len(spec.shape)]
        shape = [
            dim if isinstance(dim, int) and dim > 0 else free[min(i, 1)] for i, dim in enumerate(spec.shape)
        ]
        if math.prod(shape) > _MOST:
            return None
        if spec.dtype.kind == "f":
            feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif spec.dtype.kind in "biu":
            feed[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
        else:
            return None
    return feed
