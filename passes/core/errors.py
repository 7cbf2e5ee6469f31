"""The one error tree. A `UserError` is one sentence for a person; the CLI prints it, exits with its code."""

from __future__ import annotations

from os import PathLike
from typing import Any

__all__ = [
    "DataError",
    "DeviceError",
    "GraphError",
    "InvalidModelError",
    "ModelFileError",
    "OutputError",
    "PassError",
    "PolicyError",
    "ProofError",
    "RecipeError",
    "ResumeError",
    "SelectorError",
    "UnsupportedModelError",
    "UserError",
]


class UserError(Exception):
    """Bad input: one sentence that names the file, the node, what is wrong and what to do."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send errors; classes whose arguments are not the text could not be read there.
        return _rebuilt, (type(self), self.args, dict(vars(self)))


def _rebuilt(kind: type[UserError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    vars(error).update(fields)
    return error


class ModelFileError(UserError):
    """A file that cannot be read as an ONNX model."""

    def __init__(self, path: str | PathLike[str], problem: str) -> None:
        super().__init__(f"{path}: {problem}")


class InvalidModelError(UserError):
    """A model that the ONNX checker refuses."""


class UnsupportedModelError(UserError):
    """A model that is valid but that this operation cannot treat (unknown ops, nothing to quantize)."""


class GraphError(UserError):
    """A graph that cannot be edited."""


class PassError(UserError):
    """A pass failed; names the pass, the node and the passes that already ran."""


class ProofError(UserError):
    """A rewritten model that does not do what the model that it came from does; it is not written."""


class RecipeError(UserError):
    """A recipe that cannot be parsed, or names an unknown pass or option."""


class SelectorError(UserError):
    """A layer selector that matches nothing; lists near names."""


class PolicyError(UserError):
    """A policy file that is malformed or does not fit the model."""


class DataError(UserError):
    """A dataset that cannot be read or does not fit the model."""


class ResumeError(UserError):
    """A run folder that belongs to something else; names what differs."""


class OutputError(UserError):
    """An output that cannot be written (missing rights, full disk)."""


class DeviceError(UserError):
    """A device that cannot be reached, died, refused, hung or disagrees; names the device and the phase.

    Attributes:
        device: the device string. phase: compile, connect, upload, run, compare.
        lasting: whether trying the same model again cannot help.
    """

    def __init__(self, device: str, phase: str, problem: str, *, lasting: bool = False) -> None:
        super().__init__(f"device {device}: {phase}: {problem}")
        self.device, self.phase, self.problem, self.lasting = device, phase, problem, lasting
