"""What runs models: a tool gives runners for the device strings that begin with its name.

A tool is a file of its own and a place in the table of opening.py. Device strings, their options, the list of
devices and `doctor` ask the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from onnxq.runners.base import Runner
from onnxq.runners.device import Device

__all__ = ["Tool"]


class Tool(ABC):
    """A way to run models.

    Attributes:
        name: what stands before the colon of its device strings.
        title: as people call it.
        forms: how its device strings are written, as in `ort:PROVIDER`.
        kind: what stands behind the colon: an execution provider, a target.
        words, numbers: options of a device, with any value and with a number of 0 or more.
        prefix: of options that are passed on as they are; empty for none.
        remote: whether it runs on other machines, as NAME://HOST:PORT?target=KIND.
        remote_words, remote_numbers: options that only those have.
        packages: optional packages that it needs -> what for, for `doctor`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    forms: ClassVar[tuple[str, ...]]
    kind: ClassVar[str] = "device"
    words: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = ""
    remote: ClassVar[bool] = False
    remote_words: ClassVar[tuple[str, ...]] = ()
    remote_numbers: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def open(self, device: Device, threads: int | None) -> Runner:
        """The runner of a device; nothing is connected yet.

        threads: where the device names no number; None leaves it to the tool.

        Raises:
            DeviceError: the tool or what the device names is not here.
        """

    def local(self) -> Sequence[str]:
        """Device strings of this machine."""
        return ()

    def what(self, device: Device) -> str:  # noqa: ARG002
        """What a device is, in a few words."""
        return self.title
