"""The model hub, against a local stand-in: a folder, and a real HTTP server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from onnxq.hub import fetch, resolve
from passes.core.errors import DataError, UserError

PLACE = "validated/vision/tiny/model/tinynet-12.onnx"


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like onnx/models, and an empty cache."""
    root = tmp_path / "hub"
    (root / PLACE).parent.mkdir(parents=True)
    data = tiny.read_bytes()
    (root / PLACE).write_bytes(data)
    entries = [
        {
            "model": "TinyNet",
            "model_path": path,
            "onnx_version": "1.12",
            "opset_version": opset,
            "metadata": {
                "model_sha": hashlib.sha256(data).hexdigest(),
                "model_bytes": len(data),
                "tags": ["vision"],
            },
        }
        for path, opset in ((PLACE, 12), (PLACE.replace("-12", "-7"), 7))
    ]
    (root / "ONNX_HUB_MANIFEST.json").write_text(json.dumps(entries))
    monkeypatch.setenv("ONNX_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ONNXQ_HUB", raising=False)
    return root


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(hub: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(hub))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["hub:TinyNet", "hub:tinynet", "hub:tinynet-12"])
def test_by_name_or_file(hub: Path, tiny: Path, name: str) -> None:
    path = fetch(name, str(hub))
    assert path.read_bytes() == tiny.read_bytes()
    assert path.name == "tinynet-12.onnx"


def test_over_http_once(hub: Path, server: str, tiny: Path) -> None:
    path = fetch("hub:tinynet-12", server)
    assert path.read_bytes() == tiny.read_bytes()
    (hub / PLACE).unlink()
    assert fetch("hub:tinynet-12", server) == path, "taken from the cache"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="answered 404"):
        fetch("hub:tinynet-12", server)


def test_environment_and_tag(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_HUB", str(hub.parent))
    assert fetch("hub:tinynet-12@hub").is_file()
    monkeypatch.setenv("ONNXQ_HUB", str(hub.parent / "{tag}"))
    assert fetch("hub:tinynet-12@hub").is_file()


def test_wrong_content_is_refused(hub: Path, server: str) -> None:
    (hub / PLACE).write_bytes(b"something else")
    with pytest.raises(DataError, match="its manifest says"):
        fetch("hub:tinynet-12", server)


def test_unknown_name_lists_near_ones(hub: Path) -> None:
    with pytest.raises(UserError, match="near names: tinynet"):
        fetch("hub:tinynet-99", str(hub))
    with pytest.raises(UserError, match="write hub:NAME"):
        fetch("hub:", str(hub))


def test_no_network(hub: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        fetch("hub:tinynet-12", "http://127.0.0.1:9")


@pytest.mark.parametrize("text", ["<html>", "{}", "[1]"])
def test_no_manifest(hub: Path, text: str) -> None:
    (hub / "ONNX_HUB_MANIFEST.json").write_text(text)
    with pytest.raises(DataError, match="is not the manifest"):
        fetch("hub:tinynet-12", str(hub))


def test_a_manifest_cannot_leave_the_cache(hub: Path) -> None:
    (hub / "ONNX_HUB_MANIFEST.json").write_text(
        json.dumps([{"model": "evil", "model_path": "../../evil.onnx"}])
    )
    with pytest.raises(DataError, match="leaves it"):
        fetch("hub:evil", str(hub))


def test_other_models_are_paths() -> None:
    assert resolve("some/model.onnx") == Path("some/model.onnx")


def test_tune_from_the_hub(invoke: Callable[..., Result], hub: Path, server: str, work: Path) -> None:
    options = (
        "--data",
        "data.npz",
        "--mode",
        "weights",
        "--objectives",
        "metric,bytes",
    )
    result = invoke("tune", "hub:tinynet-12", "--hub", server, "-o", "run", *options)
    assert result.exit_code == 0, result.output
    result = invoke("tune", "hub:tinynet-12", "--hub", "http://127.0.0.1:9", "-o", "run", *options)
    assert result.exit_code == 2
    assert "cannot be reached" in result.stderr


def _with_sha(hub: Path, sha: Any) -> None:
    manifest = hub / "ONNX_HUB_MANIFEST.json"
    entries = json.loads(manifest.read_text())
    for entry in entries:
        entry["metadata"] = {} if sha is None else {"model_sha": sha}
    manifest.write_text(json.dumps(entries))


@pytest.mark.parametrize("sha", [None, "", "abc", "../../../../outside", "é" * 64, 5])
def test_a_model_without_a_hash_needs_a_flag(
    hub: Path, tmp_path: Path, invoke: Callable[..., Result], sha: Any
) -> None:
    _with_sha(hub, sha)
    with pytest.raises(DataError, match=r"has no SHA-256 for .* give `allow_unverified`"):
        fetch("hub:tinynet", str(hub))
    refused = invoke("info", "hub:tinynet", "--hub", str(hub))
    assert refused.exit_code == 2
    assert not (tmp_path / "cache").exists()
    assert invoke("info", "hub:tinynet", "--hub", str(hub), "--allow-unverified").exit_code == 0
    assert invoke("info", "hub:tinynet", "--hub", str(hub)).exit_code == 2, "the flag is of one command"
    path = fetch("hub:tinynet", str(hub), allow_unverified=True)
    assert path.resolve().is_relative_to((tmp_path / "cache").resolve())


@pytest.mark.parametrize(
    "path", ["../x.onnx", "/x.onnx", "a/../../x.onnx", "..\\x.onnx", "C:x.onnx", "", "a\0b"]
)
def test_paths_of_a_manifest_stay_in_the_cache(hub: Path, path: str) -> None:
    (hub / "ONNX_HUB_MANIFEST.json").write_text(json.dumps([{"model": "x", "model_path": path}]))
    with pytest.raises(DataError, match="a path that leaves it"):
        fetch("hub:x", str(hub), allow_unverified=True)
