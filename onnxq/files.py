"""Files that are either the old one or the new one, and hashes that name them.

A run can be killed, and a disk can fill up, between any two instructions. Whatever is written here is
therefore complete under its name or not there at all: bytes go to a temporary file in the same folder, are
fsynced, and are renamed over the name in one step; then the folder is fsynced, so that the rename survives
a power cut too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from passes.core.errors import OutputError
from passes.graph.scratch import Scratch, lock_descriptor, remove_leftovers, scratch_folder, temporary_name

__all__ = [
    "Scratch",
    "atomic_write",
    "atomic_write_json",
    "canonical_json",
    "fsync_folder",
    "make_folder",
    "output_errors",
    "remove_leftovers",
    "scratch_folder",
    "sha256_bytes",
    "sha256_file",
]

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def output_errors(path: str | PathLike[str]) -> Iterator[None]:
    """Turn any OSError of the block into an `OutputError` that names `path` and the system's reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{os.fspath(path)}: cannot be written: {reason}") from error


def make_folder(path: str | PathLike[str]) -> Path:
    """Create a folder and its parents; an existing one is fine.

    Raises:
        OutputError: it cannot be created, or a file stands in its place.
    """
    folder = Path(path)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def fsync_folder(folder: str | PathLike[str]) -> None:
    """Make renames inside `folder` durable; does nothing where a folder cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: str | PathLike[str], content: bytes | str) -> None:
    """Write `content` (text as UTF-8) under `path` so that no reader ever sees half of it.

    Missing parent folders are created. On failure the old file is untouched and no temporary file stays.

    Raises:
        OutputError: no space, no permission, or a parent that cannot be created; names path and reason.
    """
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened like any other file, so that the umask decides who may read it (mkstemp says 0600).
        temporary = temporary_name(target)
        try:
            with temporary.open("xb") as file:
                with contextlib.suppress(OSError):
                    lock_descriptor(file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105 (tests inject faults here; 3.10 hides it in Path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(target.parent)


def atomic_write_json(path: str | PathLike[str], obj: Any) -> None:
    """`atomic_write` of `canonical_json(obj)` and a final newline."""
    atomic_write(path, canonical_json(obj) + "\n")


def canonical_json(obj: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8 kept as it is.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
        TypeError: a value that JSON does not have.
    """
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file's content in lower-case hex, in constant memory.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
