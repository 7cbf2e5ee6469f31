"""Weight formats: one object and one file each, and the table of them all.

A format of your own is a subclass of `WeightFormat` (passes/formats/base.py), named in a package's metadata:

    [project.entry-points."onnxq.formats"]
    mine = "my_package:MyFormat"
"""

from __future__ import annotations

from importlib.metadata import entry_points

from passes.formats.base import Simulation, Stream, WeightFormat, format_of
from passes.formats.form import Form
from passes.formats.gse import Gse
from passes.formats.half import Float16
from passes.formats.integer import Integer
from passes.formats.mx import MxFp4, MxInt8
from passes.formats.scheme import FLOAT, GRAMMARS, Granularity, Scheme
from passes.formats.tcq import Tcq
from runtime_ops.functions import register_function

__all__ = [
    "FLOAT",
    "FORMATS",
    "Form",
    "Granularity",
    "Scheme",
    "WeightFormat",
    "format_of",
    "register_format",
    "register_plugins",
    "simulation_of",
    "stream_of",
]

# Name -> format, in the order in which messages list them.
FORMATS: dict[str, WeightFormat] = {}
_STREAMS: dict[str, Stream] = {}
_SIMULATIONS: dict[str, Simulation] = {}


def register_format(made: WeightFormat) -> None:
    """Put a format into the table."""
    FORMATS[made.name] = GRAMMARS[made.name] = made
    for stream in made.streams:
        _STREAMS[stream.op] = stream
        register_function(stream.op, stream.function)
    if made.simulation is not None:
        _SIMULATIONS[made.simulation.op] = made.simulation


def stream_of(domain: str | None, op: str) -> Stream | None:
    """The stream that a node of that domain and type decodes; None for any other node."""
    return _STREAMS.get(op) if domain == "ai.onnxq" else None


def simulation_of(domain: str | None, op: str) -> Simulation | None:
    """The simulation that a node computes; None for any other node."""
    return _SIMULATIONS.get(op) if domain == "ai.onnxq" else None


for _made in (Integer(), Gse(), Tcq(), Float16(), MxFp4(), MxInt8()):
    register_format(_made)


def register_plugins() -> None:
    """Put the formats of installed packages into the table."""
    for entry in entry_points(group="onnxq.formats"):
        register_format(entry.load()())


register_plugins()
