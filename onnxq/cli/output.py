"""Written models: where they go, and what is written into them about how they were made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxq._version import __version__
from onnxq.cli.options import absolute_free
from onnxq.files import canonical_json
from passes.core.errors import OutputError
from passes.graph.model import Model, model_files

__all__ = ["check_output", "output_path", "stamped"]


def output_path(output: str | None, source: str, suffix: str) -> Path:
    """-o, or a name beside the input: `model.onnx` and `fold` give `model.fold.onnx`.

    Raises OutputError when nothing could be written there, before any work is done.
    """
    path = Path(source)
    target = Path(output) if output else path.with_name(f"{path.stem}.{suffix}.onnx")
    if target.is_dir():
        target = target / f"{path.stem}.{suffix}.onnx"
    check_output(target, path)
    return target


def check_output(target: Path, source: Path | None = None) -> None:
    """Raise OutputError for a target that is a file of the input or cannot be written."""
    if source is not None and source.exists():
        _refuse_input(target, source)
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{target}: cannot be written: no permission to write in {folder}")


def _refuse_input(target: Path, source: Path) -> None:
    """Raise OutputError where a written model, or its external data, would replace a file of the input."""
    if target.exists() and target.samefile(source):
        raise OutputError(f"{target}: is the input itself; choose another -o")
    written = [file for file in (target, target.with_name(target.name + ".data")) if file.exists()]
    files = model_files(source) if written else []
    for file in written:
        if any(file.samefile(held) for held in files):
            raise OutputError(
                f"{target}: would replace '{file}', external data of the input; choose another -o"
            )


def stamped(model: Model, command: str, settings: Mapping[str, Any]) -> Model:
    """The model with the resolved configuration in its metadata, as `onnxq.config`."""
    config = {"command": command, "onnxq": __version__, **absolute_free(settings)}
    return model.with_metadata(config=canonical_json(config))
