"""Writing a model so that nothing wrong ever takes its name: written aside, proven, then renamed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from onnxq.data import Dataset
from onnxq.files import make_folder, output_errors
from onnxq.proof.prove import Proof, Reference
from passes.graph.model import Model
from passes.graph.model import save as write
from passes.graph.scratch import scratch_folder
from passes.graph.writing import put_in_place

__all__ = ["Written", "save", "write_model"]


@dataclass(frozen=True)
class Written:
    """A file that was written: its size in bytes, external data included, and how it was proven."""

    size: int
    proof: Proof


def write_model(model: Model, target: Path, reference: Reference | None = None) -> Written:
    """Write a model and prove the written file against `reference` before it takes its name.

    reference: the model that it came from; default the origin in its history, on made-up inputs.
    Raises ProofError where it does not do what that does, InvalidModelError where it does not load or run,
    OutputError where it cannot be written; nothing is left behind then.
    """
    created = [folder for folder in target.parents if not folder.exists()]
    make_folder(target.parent)
    try:
        with output_errors(target), scratch_folder(target.parent) as folder:
            part = folder / target.name
            named = Model(model.proto, str(target), model.history)
            size = write(named, part)
            proof = (reference or Reference(model.origin)).prove(named, part)
            put_in_place(part, target)
    except BaseException:
        for made in created:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        raise
    return Written(size, proof)


def save(model: Model, path: str | os.PathLike[str], *, data: Dataset | None = None) -> int:
    """Write a model atomically, proven against the model that its passes were given.

    The file is loaded and run in stock ONNX Runtime before it takes its name: rewrites that keep the function
    agree with the original to 1e-4 of the largest output, any other gives the same shapes and is finite where
    the original is. Over 2 GB the weights go to `PATH.data`.

    Args:
        model: of `load`, or what passes made of it. path: where to write; missing folders are made.
        data: samples to compare on; made-up inputs without it.

    Returns:
        The bytes written.

    Raises:
        ProofError: the model does not do what the original does.
        InvalidModelError: ONNX Runtime cannot load or run it.
        OutputError: it cannot be written.
    """
    return write_model(model, Path(path), Reference(model.origin, data)).size
