"""Written models: where they go, and the proof that they run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxq._version import __version__
from onnxq.cli.options import absolute_free
from onnxq.files import canonical_json, make_folder, output_errors
from passes.errors import InvalidModelError, OutputError
from passes.model import Model, load, model_files, save

__all__ = ["check_output", "output_path", "run_once", "stamped", "write_model"]


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


def run_once(model: Model) -> None:
    """Load the model in ONNX Runtime and run it once. Raises InvalidModelError when either fails."""
    from onnxq.evaluation import load_session
    from onnxq.runners.feeds import made_up_feed

    session = load_session(model, threads=1)
    feed = made_up_feed(model)
    if feed is None:
        return
    try:
        session.run(None, feed)
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = str(error).strip().splitlines()[0][:300]
        raise InvalidModelError(f"{model.name}: ONNX Runtime loads it but cannot run it: {reason}") from None


def write_model(model: Model, target: Path) -> int:
    """Write a model and prove the written file: it is loaded and run once before it takes its name.

    Returns the bytes written. Raises InvalidModelError or OutputError; nothing is left behind then.
    """
    created = _missing_parents(target)
    make_folder(target.parent)
    try:
        with (
            output_errors(target),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnxq-") as folder,
        ):
            part = Path(folder) / target.name
            size = save(Model(model.proto, str(target)), part)
            run_once(Model(load(part).proto, str(target)))
            for file in sorted(
                Path(folder).iterdir(), reverse=True
            ):  # external data before the model that names it
                os.replace(file, target.with_name(file.name))  # noqa: PTH105 - tests inject faults here
    except BaseException:
        for folder_made in created:
            if folder_made.is_dir() and not any(folder_made.iterdir()):
                folder_made.rmdir()
        raise
    return size


def _missing_parents(target: Path) -> list[Path]:
    """Parent folders that do not exist yet, innermost first."""
    return [folder for folder in target.parents if not folder.exists()]
