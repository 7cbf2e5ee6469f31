"""Models of the ONNX Model Hub: `hub:NAME[@tag]` to a checked file in a local cache.

onnx.hub was removed from onnx (1.23 has none), so the small part that is needed stands here, with the same
manifest (ONNX_HUB_MANIFEST.json), the same addresses (github.com/onnx/models) and the same cache folder.
A stand-in for tests and for machines without network is a URL or folder that holds a manifest; give it with
--hub or ONNXQ_HUB. Where it contains `{tag}`, the tag is put there; else a tag is a subfolder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import urllib.error
import urllib.request
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from onnxq.documents import anything, each, integer, record, table, text
from onnxq.files import atomic_write, sha256_file
from passes.core.errors import DataError, UserError
from passes.graph.jsontext import parse_json

__all__ = ["UNVERIFIED", "fetch", "is_hub", "resolve"]

_MANIFEST = "ONNX_HUB_MANIFEST.json"
_RAW = "https://raw.githubusercontent.com/onnx/models/{tag}/"
# Git LFS keeps the models themselves elsewhere; the raw address gives a pointer of three lines.
_LFS = "https://media.githubusercontent.com/media/onnx/models/{tag}/"
_TIMEOUT_S = 30.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRIES = each(
    record({"model_path": text}, {"model": text, "opset_version": integer, "metadata": table(anything)})
)
UNVERIFIED: ContextVar[bool] = ContextVar("UNVERIFIED", default=False)
"""Whether --allow-unverified was given to the command that runs."""


def is_hub(spec: str) -> bool:
    return spec.startswith("hub:")


def resolve(spec: str, hub: str | None = None) -> Path:
    """A local path: of the fetched model for `hub:NAME`, else `spec` itself."""
    return fetch(spec, hub) if is_hub(spec) else Path(spec)


def fetch(spec: str, hub: str | None = None, *, allow_unverified: bool = False) -> Path:
    """The file of `hub:NAME[@tag]`, downloaded once and checked against the manifest's SHA-256.

    allow_unverified: also take a file for which the manifest has no SHA-256; it is downloaded every time.

    NAME is a model's name in the manifest or the stem of its file (mobilenetv2-12), in any case; several
    files of one name: the newest opset. hub: a URL or folder in place of github.com/onnx/models.
    Raises UserError for an unknown name, DataError when the network or the content is not as it should be.
    """
    name, _, tag = spec.removeprefix("hub:").partition("@")
    if not name:
        raise UserError(f"{spec}: write hub:NAME, as in hub:mobilenetv2-12")
    source = hub or os.environ.get("ONNXQ_HUB") or ""
    raw, lfs = _bases(source, tag)
    manifest = _manifest(raw, spec)
    entry = _find(manifest, name, spec)
    path, wanted = entry["model_path"], str(entry.get("metadata", {}).get("model_sha", "")).lower()
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.name or set(path) & set("\\:\0"):
        raise DataError(f"{spec}: the hub's manifest has a path that leaves it: {path}")
    if not _SHA256.fullmatch(wanted):
        if not (allow_unverified or UNVERIFIED.get()):
            raise DataError(
                f"{spec}: the hub's manifest has no SHA-256 for {path}, so the file cannot be verified; if "
                "you trust the hub, give `allow_unverified`"
            )
        wanted = ""
    # In a folder of its own, so that reports and run folders show the model under its plain name.
    target = _cache() / parts.parent / (wanted[:16] or "unchecked") / parts.name
    if wanted and target.is_file() and sha256_file(target) == wanted:
        return target
    data = _read(lfs, path, spec)
    found = hashlib.sha256(data).hexdigest()
    if wanted and found != wanted:
        raise DataError(
            f"{spec}: what the hub sent has SHA-256 {found[:12]}..., its manifest says {wanted[:12]}...; "
            "try again, or download the file by hand"
        )
    atomic_write(target, data)
    return target


def _cache() -> Path:
    """Where onnx.hub kept its downloads."""
    if "ONNX_HOME" in os.environ:
        return Path(os.environ["ONNX_HOME"]) / "hub"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "onnx" / "hub"


def _bases(source: str, tag: str) -> tuple[str, str]:
    """Where the manifest and where the models lie."""
    if not source:
        return _RAW.format(tag=tag or "main"), _LFS.format(tag=tag or "main")
    if "{tag}" in source:
        base = source.replace("{tag}", tag or "main")
    else:
        base = f"{source.rstrip('/')}/{tag}" if tag else source
    base = base if base.endswith("/") else f"{base}/"
    return base, base


def _read(base: str, path: str, spec: str) -> bytes:
    if "://" not in base:
        file = Path(base) / path
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{spec}: {file} cannot be read ({error.strerror or error})") from None
    address = base + quote(path)
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise DataError(f"{spec}: {address} answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{spec}: {address} cannot be reached ({reason}); is there a network? A local copy of the hub is "
            "given with `hub` FOLDER"
        ) from None


def _manifest(base: str, spec: str) -> list[dict[str, Any]]:
    entries = parse_json(
        _read(base, _MANIFEST, spec), f"{spec}: {base}{_MANIFEST}", DataError, "the manifest of a model hub"
    )
    try:
        _ENTRIES(entries, "")
    except ValueError as error:
        raise DataError(f"{spec}: {base}{_MANIFEST} is not the manifest of a model hub: {error}") from None
    return list(entries)


def _find(manifest: list[dict[str, Any]], name: str, spec: str) -> dict[str, Any]:
    def names(entry: dict[str, Any]) -> tuple[str, str]:
        return str(entry.get("model", "")).lower(), PurePosixPath(str(entry["model_path"])).stem.lower()

    found = [entry for entry in manifest if name.lower() in names(entry)]
    if not found:
        known = sorted({names(entry)[1] for entry in manifest})
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known[:3]
        raise UserError(f"{spec}: the hub has no model '{name}'; near names: {', '.join(near)}")
    return max(found, key=lambda entry: int(entry.get("opset_version", 0)))
