"""The passes that run in front of what was asked for, so that it finds more to work on."""

from __future__ import annotations

from passes.core.base import Courtesy, Sequential
from passes.fold_batchnorm import FoldBatchNorm
from passes.inline_functions import InlineFunctions
from passes.simplify import Simplify

__all__ = ["preparation"]


def preparation() -> Sequential:
    """inline_functions | simplify | fold_batchnorm; one that cannot work on a graph leaves a note."""
    return Sequential((Courtesy(InlineFunctions()), Courtesy(Simplify()), Courtesy(FoldBatchNorm())))
