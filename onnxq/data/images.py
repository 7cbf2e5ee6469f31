"""Images in a folder or a .zip: with labels.txt, in class subfolders, or plain (unlabelled)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from onnxq.data.archive import ARCHIVE_ERRORS, ZipFolder
from onnxq.data.dataset import Labels
from onnxq.data.inputs import InputSpec, Sample, conform, sole_input
from onnxq.data.kind import file_kind, folder_kind
from onnxq.data.limits import check_unpacked
from onnxq.data.pixels import decode_image
from onnxq.data.preprocess import Preprocess
from passes.core.errors import DataError

__all__ = ["FOLDER", "ZIP", "ImageSource", "has_images", "open_image_folder", "open_image_zip"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
LABEL_FILE = "labels.txt"
# Of a label; what has more is not a class number.
_DIGITS = 9


class ImageSource:
    """Encoded image files, read and decoded one at a time."""

    whole = False

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        labels: Labels | None,
        read: Callable[[str], bytes],
        inputs: Sequence[InputSpec],
        preprocess: Preprocess | None,
    ) -> None:
        """`files` are names relative to the folder or zip `name`; `read` gives a file's bytes."""
        if preprocess is None:
            raise DataError(
                f"{name}: images need `preprocess` (a preset, FILE.json, or 'none' for raw pixels)."
            )
        sole_input(inputs, name)
        self.name, self.files, self.labels = name, files, labels
        self._read, self._inputs, self._preprocess = read, inputs, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> Sample:
        origin = self.origin(index)
        pixels = decode_image(self._bytes(index), origin)
        return conform({self._inputs[0].name: pixels}, self._inputs, self._preprocess, origin)

    def origin(self, index: int) -> str:
        return f"{self.name}/{self.files[index]}"

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self._bytes(index)).digest()

    def settings(self) -> str:
        return f"images|{self._preprocess.to_json()}"

    def _bytes(self, index: int) -> bytes:
        try:
            return self._read(self.files[index])
        except (KeyError, *ARCHIVE_ERRORS) as error:
            raise DataError(f"{self.origin(index)}: cannot be read ({error}); check the file.") from error


def has_images(folder: Path) -> bool:
    """Whether the folder has labels.txt, images, or subfolders with images."""
    return (folder / LABEL_FILE).is_file() or bool(_list(folder))


def open_image_folder(
    folder: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> ImageSource:
    """labels.txt wins over subfolders; subfolder names sorted are labels 0, 1, ..."""
    text = folder / LABEL_FILE
    labels: Labels | None
    if text.is_file():
        content = _read_file(folder, LABEL_FILE).decode("utf-8-sig", errors="replace")
        files, labels = _parse_labels(content, str(text), partial(_exists, folder))
    else:
        files, labels = _classify(_list(folder), str(folder), _subfolders(folder))
    return ImageSource(str(folder), files, labels, partial(_read_file, folder), inputs, preprocess)


def _exists(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except OSError:  # a name that is too long
        return False


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    check_unpacked(str(path), path.stat().st_size)
    return path.read_bytes()


def open_image_zip(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> ImageSource:
    """The same three arrangements inside a .zip, below one optional common folder."""
    archive = ZipFolder(path)
    members = [name for name in archive.names if _visible(PurePosixPath(name))]
    root = os.path.commonpath([str(PurePosixPath(name).parent) for name in members]) if members else ""
    prefix = f"{root}/" if root else ""
    names = {name.removeprefix(prefix) for name in members}
    labels: Labels | None
    if LABEL_FILE in names:
        content = _label_text(archive, prefix + LABEL_FILE)
        files, labels = _parse_labels(content, f"{path}/{LABEL_FILE}", names.__contains__)
    else:
        images = sorted(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES)
        folders = sorted({str(PurePosixPath(name).parent) for name in images} - {"."})
        files, labels = _classify(images, str(path), folders)
    return ImageSource(str(path), files, labels, partial(_read_member, archive, prefix), inputs, preprocess)


def _read_member(archive: ZipFolder, prefix: str, name: str) -> bytes:
    return archive.read(prefix + name)


def _label_text(archive: ZipFolder, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8-sig", errors="replace")
    except (KeyError, *ARCHIVE_ERRORS) as error:
        raise DataError(f"{archive.path}/{name}: cannot be read ({error}); check the file.") from error


def _visible(path: PurePosixPath) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list(folder: Path) -> list[str]:
    places = [folder, *(folder / name for name in _subfolders(folder))]
    return [
        path.relative_to(folder).as_posix()
        for place in places
        for path in sorted(place.iterdir())
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]


def _classify(files: list[str], origin: str, folders: Sequence[str]) -> tuple[list[str], Labels | None]:
    if not files:
        raise DataError(f"{origin}: there are no images; give a folder with images or with class subfolders.")
    parents = [str(PurePosixPath(name).parent) for name in files]
    if all(parent == "." for parent in parents):
        return files, None
    if "." in parents:
        raise DataError(
            f"{origin}: images both beside and inside class folders; move them or write {LABEL_FILE}."
        )
    number = {name: label for label, name in enumerate(folders)}
    return files, np.asarray([number[parent] for parent in parents], np.int64)


def _parse_labels(content: str, origin: str, exists: Callable[[str], bool]) -> tuple[list[str], Labels]:
    files, labels = [], []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2 or not parts[1].isdecimal() or len(parts[1]) > _DIGITS:
            raise DataError(
                f"{origin}:{number}: {line.strip()[:80]!r} is malformed; write 'file label', label 0 or "
                "above."
            )
        name = parts[0].strip()
        if not exists(name):
            raise DataError(
                f"{origin}:{number}: image {name[:80]!r} does not exist; remove the line or add the file."
            )
        files.append(name)
        labels.append(int(parts[1]))
    if not files:
        raise DataError(f"{origin}: the file has no lines; write 'file label' per image.")
    return files, np.asarray(labels, np.int64)


FOLDER = folder_kind("images", has_images, open_image_folder)
ZIP = file_kind(".zip", open_image_zip)
