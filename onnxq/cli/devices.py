"""`devices`: what can be reached and what each can run."""

from __future__ import annotations

import click

from onnxq.cli.options import json_option

__all__ = ["devices"]


@click.command()
@click.argument("names", metavar="[DEVICE]...", nargs=-1)
@json_option
def devices(names: tuple[str, ...], as_json: bool) -> None:
    """List devices: those of this machine, or the DEVICEs named, as tvm://192.168.1.7:9090?target=mali.

    Each runs a small float and a small int8 model, and its outputs are compared with ONNX Runtime's on the
    CPU. Exit code 2 when a DEVICE that was named runs neither.
    """
    from onnxq.cli.terminal import print_json, table
    from onnxq.runners.listing import probe
    from onnxq.runners.opening import local_devices

    found = [probe(name) for name in names or local_devices()]
    if as_json:
        print_json({"devices": [reach.to_json() for reach in found]})
    else:
        rows = [
            (reach.device, ", ".join(reach.runs) or "nothing", reach.problem or reach.what) for reach in found
        ]
        table(["device", "runs", "what it is, or what is wrong"], rows, title=None)
    if names and not all(reach.runs for reach in found):
        raise click.exceptions.Exit(2)
