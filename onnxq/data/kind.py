"""A kind of data: how it is written after `data`, when it is meant, and what opens it.

A kind is a file of its own with a `KIND`, and a place in the table of sources.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.data.dataset import Dataset, Source
from onnxq.data.inputs import InputSpec
from onnxq.data.preprocess import Preprocess

__all__ = ["Kind", "file_kind", "folder_kind", "prefix_kind"]


@dataclass(frozen=True)
class Kind:
    """One way to give data.

    Attributes:
        form: how it is written, for messages and help.
        takes: whether a text means this kind.
        open: (text, the model's inputs, preprocessing) -> the samples. Raises DataError.
        inside: whether it is a folder that holds what `form` says.
        runs_code: whether opening it imports and calls a module that the text names, or downloads.
    """

    form: str
    takes: Callable[[str], bool]
    open: Callable[[str, Sequence[InputSpec], Preprocess | None], Source | Dataset]
    runs_code: bool = False
    inside: bool = False


_OpenPath = Callable[[Path, Sequence[InputSpec], Preprocess | None], Source]


def file_kind(suffix: str, opened: _OpenPath) -> Kind:
    """A file by its suffix, as in `.npy`."""
    return Kind(
        suffix,
        lambda spec: Path(spec).is_file() and Path(spec).suffix.lower() == suffix,
        lambda spec, inputs, preprocess: opened(Path(spec), inputs, preprocess),
    )


def folder_kind(form: str, holds: Callable[[Path], bool], opened: _OpenPath) -> Kind:
    """A folder by what it holds."""
    return Kind(
        form,
        lambda spec: Path(spec).is_dir() and holds(Path(spec)),
        lambda spec, inputs, preprocess: opened(Path(spec), inputs, preprocess),
        inside=True,
    )


def prefix_kind(
    prefix: str,
    form: str,
    opened: Callable[[str, Sequence[InputSpec], Preprocess | None], Source | Dataset],
    *,
    runs_code: bool,
) -> Kind:
    """A text that begins with a prefix, as in `hf:`; the prefix is part of what is opened."""
    return Kind(form, lambda spec: spec.startswith(prefix), opened, runs_code)
