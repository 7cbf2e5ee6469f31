"""Zip files from anywhere: members are counted and weighed by what they declare, before one is unpacked.

A member whose real size is larger than declared is cut there by zipfile and fails its checksum.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from onnxq.data.limits import check_unpacked
from passes.core.errors import DataError

__all__ = ["ARCHIVE_ERRORS", "ZipFolder", "checked_members", "copy_member"]

# NotImplementedError: an unknown compression; RuntimeError: a password; the rest is damage.
ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# bz2 and lzma unpack a whole block at once, whatever was declared.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 1 << 16


def checked_members(archive: zipfile.ZipFile, path: str) -> list[zipfile.ZipInfo]:
    """The files of an archive.

    Raises:
        DataError: together they unpack to more than they may, or one is packed in an unusual way.
    """
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        if member.compress_type not in _COMPRESSIONS:
            raise DataError(f"{path}: {member.filename!r} is not packed by deflate; pack the archive anew.")
    packed = Path(path).stat().st_size if Path(path).exists() else 0
    check_unpacked(path, sum(member.file_size for member in members), packed)
    return members


def copy_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: IO[bytes]) -> None:
    """Unpack a member into an open file; never more bytes than it declares."""
    with archive.open(member) as packed:
        while chunk := packed.read(_CHUNK):
            target.write(chunk)


class ZipFolder:
    """The files of a .zip, read one at a time; can be sent to another process, which opens the zip again."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for what is not a zip, or unpacks to more than it may."""
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        try:
            self.names = [member.filename for member in checked_members(self._opened(), str(path))]
        except ARCHIVE_ERRORS as error:
            raise DataError(f"{path}: cannot be read as a zip ({error}); check the file.") from error

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises one of ARCHIVE_ERRORS, or KeyError."""
        return self._opened().read(name)

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive
