"""Running a model as its user will, in a stock ONNX Runtime session, within a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxq.proof.feeds import Feed
from onnxq.session import load_session, stock_session
from passes.graph.model import Model

__all__ = ["MADE_UP_SECONDS", "RUN_SECONDS", "Outputs", "Overtime", "Refusal", "Runner", "numeric", "telling"]

Outputs = dict[str, Any]
# One run of a given model; what takes longer is not tried. Nobody waits for made-up numbers for long.
RUN_SECONDS = 60.0
MADE_UP_SECONDS = 10.0


class Overtime(Exception):  # noqa: N818 - an outcome that the caller decides about, never shown
    """A run that did not end in time: the model may loop for ever."""


class Refusal(Exception):  # noqa: N818 - the same
    """ONNX Runtime does not run the model on this feed; the text is its reason."""


def numeric(value: Any) -> npt.NDArray[Any] | None:
    """The output as an array of numbers; None for text, sequences and maps."""
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OSU":
        return None
    return value


class Runner:
    """A model's session and the names of its outputs.

    path: the file that holds exactly this model, where there is one. ours: open it as `onnxq.load_session`
    does, which decodes bit streams itself, instead of as anybody else would.
    Raises InvalidModelError where ONNX Runtime cannot load the model.
    """

    def __init__(self, model: Model, path: Path | None = None, *, ours: bool = False) -> None:
        self.model = model
        self._session = load_session(path or model) if ours else stock_session(model, path)
        self.names: list[str] = [value.name for value in self._session.get_outputs()]

    def run(self, feed: Feed, seconds: float) -> Outputs:
        """Outputs by name. Raises Overtime after `seconds`, Refusal where the run fails."""
        options = ort.RunOptions()
        options.log_severity_level = 4
        began = time.monotonic()
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            values = self._session.run(None, feed, options)
        except MemoryError:
            raise Refusal("it needs more memory than there is") from None
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime") and not isinstance(
                error, (RuntimeError, ValueError, TypeError)
            ):
                raise
            if time.monotonic() - began >= seconds:
                raise Overtime from None
            raise Refusal(_first_line(error)) from None
        finally:
            timer.cancel()
        return dict(zip(self.names, map(_own, values), strict=True))


def _own(value: Any) -> Any:
    """The output in memory of its own: ONNX Runtime's keeps the whole arena of its session."""
    return value.copy() if isinstance(value, np.ndarray) else value


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def telling(outputs: Outputs, most: Callable[[Iterable[bool]], bool]) -> bool:
    """Whether comparing all (or any) of these outputs says something: finite values other than 0."""
    return bool(outputs) and most(map(_tells, outputs.values()))


def _tells(value: Any) -> bool:
    array = numeric(value)
    if array is None:
        return True
    return bool(array.size and (array.dtype.kind != "f" or (np.isfinite(array) & (array != 0)).any()))
