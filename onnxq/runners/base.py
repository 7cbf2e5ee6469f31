"""What every device offers: a Runner prepares models, a Program runs and times one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from passes.core.errors import DeviceError
from passes.graph.model import Model

if TYPE_CHECKING:
    from onnxq.runners.profile import Placement

__all__ = ["Array", "DeviceError", "Feed", "Profiler", "Program", "Runner", "first_line"]

# "InternalError: Check failed: (sock.Connect(addr)) is false: Connect to ... failed"
_CHECK = re.compile(r"^(\w+Error: )?Check failed: \(.*\) is false: ")

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


class Program(Protocol):
    """A model that is ready on a device."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user must know: nodes that fell back to the CPU, Q/DQ left unfused, missing CPU
        features.
        """

    def run(self, feed: Feed) -> list[Array]:
        """The outputs, in the model's order. Raises DeviceError naming device and phase."""

    def time(self, feed: Feed, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs, without the transfer of inputs. Raises DeviceError."""

    def close(self) -> None:
        """Give back what it holds; closing twice is fine."""


class Runner(Protocol):
    """A device."""

    @property
    def name(self) -> str:
        """The device string."""

    def prepare(self, model: Model, batch: int = 1) -> Program:
        """Compile or load `model` for `batch` samples a run.

        Raises:
            DeviceError: the device cannot be reached or died; trying again later may help.
            UnsupportedModelError: the device cannot run this model, ever.
        """

    def close(self) -> None:
        """End its processes; closing twice is fine."""


@runtime_checkable
class Profiler(Runner, Protocol):
    """A device that can say where the time of a model goes."""

    def profile(self, model: Model, batch: int = 1, runs: int = 1, feed: Feed | None = None) -> Placement:
        """Kernels, their times and providers, under the model's own node names."""


def first_line(error: BaseException | str, limit: int = 300) -> str:
    """The first line of a message, without what only TVM's authors understand; else the type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return _CHECK.sub("", text)[:limit]


def as_arrays(outputs: Sequence[Any]) -> list[Array]:
    return [np.asarray(output) for output in outputs]
