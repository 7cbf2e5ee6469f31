"""`doctor`: what is installed, what this CPU can do, and which execution providers really work."""

from __future__ import annotations

import sys
from typing import Any

import click

from onnxq.cli.options import json_option

__all__ = ["doctor"]

_PACKAGES = (
    "onnx",
    "onnxruntime",
    "onnx-graphsurgeon",
    "onnxruntime-extensions",
    "numpy",
    "scipy",
    "pymoo",
    "pillow",
    "click",
    "rich",
)
_OPTIONAL = {"datasets": "hf:NAME data", "torch": "training", "distributed": "clusters"}


def _versions(names: Any) -> dict[str, str | None]:
    from importlib import metadata

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in names}


def _tiny_model() -> bytes:
    """y = relu(x) + x: small, and every provider has it."""
    from onnx import parser

    text = (
        '<ir_version: 8, opset_import: ["" : 13]> g (float[1,4] x) => (float[1,4] y) '
        "{ r = Relu(x) y = Add(r, x) }"
    )
    return bytes(parser.parse_model(text).SerializeToString())


def _provider(name: str, model: bytes) -> dict[str, Any]:
    """Whether a provider takes a session, was really used by it, and computes the right thing."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if name != "CPUExecutionProvider":
        # Without this a provider that takes no node at all looks as if it worked.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    x = np.array([[-1.0, 0.0, 1.0, 2.0]], np.float32)
    try:
        session = ort.InferenceSession(model, options, providers=[name])
        used = name in session.get_providers()
        y = session.run(None, {"x": x})[0]
    except Exception as error:  # noqa: BLE001 - whatever a broken driver throws is the answer
        reason = str(error).strip().splitlines()[0][:200]
        if "fallback to CPU EP" in reason:
            reason = "it takes no node of a plain model; ONNX Runtime would run everything on the CPU"
        return {"name": name, "works": False, "problem": reason}
    if not used:
        return {"name": name, "works": False, "problem": "ONNX Runtime fell back to another provider"}
    right = bool(np.allclose(y, np.maximum(x, 0) + x))
    return {"name": name, "works": right, "problem": None if right else "it computes a wrong result"}


def _optional() -> dict[str, str]:
    """Optional packages -> what for; those of the tools that run models too."""
    from onnxq.runners import tools

    return _OPTIONAL | {name: why for tool in tools() for name, why in tool.packages.items()}


def _facts() -> dict[str, Any]:
    import platform

    import onnxruntime as ort

    from onnxq._version import __version__
    from onnxq.machine import cpu_flags, cpu_name, default_threads, vnni_warning
    from runtime_ops.library import library_status

    model = _tiny_model()
    return {
        "onnxq": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": _versions(_PACKAGES),
        "optional": _versions(_optional()),
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "threads": default_threads(),
        "vnni_warning": vnni_warning(),
        "providers": [_provider(name, model) for name in ort.get_available_providers()],
        "custom_ops": library_status(),
    }


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """What is installed, what this CPU can do, and which execution providers work.

    Each provider runs a tiny model and is asked whether it was really used. Exit code 2 when the CPU provider
    or a needed package does not work.
    """
    from onnxq.cli.terminal import print_json, warn

    facts = _facts()
    missing = [name for name, version in facts["packages"].items() if version is None]
    cpu = any(p["name"] == "CPUExecutionProvider" and p["works"] for p in facts["providers"])
    healthy = cpu and not missing
    if as_json:
        print_json({**facts, "healthy": healthy})
        raise click.exceptions.Exit(0 if healthy else 2)
    good, bad = click.style("ok     ", fg="green"), click.style("missing", fg="red")
    click.echo(f"onnxq  {facts['onnxq']}")
    click.echo(f"Python {facts['python']} on {facts['platform']}")
    click.echo(f"CPU    {facts['cpu']}; {facts['threads']} core(s) for this process")
    click.echo(f"       {' '.join(facts['cpu_flags']) or 'flags unknown'}")
    click.echo("\nPackages")
    for name, version in facts["packages"].items():
        click.echo(f"  {good if version else bad} {name} {version or ''}".rstrip())
    optional = _optional()
    for name, version in facts["optional"].items():
        click.echo(
            f"  {good if version else 'not in '} {name} {version or ''}".rstrip()
            + f"  (optional: {optional[name]})"
        )
    click.echo("\nExecution providers")
    for provider in facts["providers"]:
        state = good if provider["works"] else click.style("no use ", fg="yellow")
        problem = f": {provider['problem']}" if provider["problem"] else ""
        click.echo(f"  {state} {provider['name']}{problem}")
    click.echo(
        "\nC++ library (GSE and packed integers; without it they are decoded by numpy, with the same bits)"
    )
    library = facts["custom_ops"]
    if library["built"]:
        click.echo(f"  {good} {library['path']}, using {library['isa']} of {', '.join(library['isas'])}")
    if library["reason"]:
        click.echo(f"  not in  {library['reason']}")
    if facts["vnni_warning"]:
        warn(facts["vnni_warning"])
    raise click.exceptions.Exit(0 if healthy else 2)
