"""What one training is told, and the check that it makes sense; no torch needed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from passes.core.errors import UserError
from passes.policy import Scheme

__all__ = ["TrainConfig", "require_torch"]

# Fields that may differ when a training is continued: they decide when and where it runs, not what comes out.
_FREE = ("checkpoint_s", "stop_s", "threads")
_MOST = 32 / 2


@dataclass(frozen=True)
class TrainConfig:
    """epochs may be a fraction. lr: peak. distill: share of the float network's soft labels in the loss, 0
    to 1. precision: empty chooses bfloat16 on CUDA and float32 elsewhere. threads: of torch, 0 leaves them
    to it.

    ranges: how those of quantized activations are learned (onnxq/training/activations.py).

    msq: compression (32 means nothing, 16 is 2 bits a weight), activations, lam, alpha, rounds, prune_share
    (of the steps), strength and steps (see onnxq/training/msq.py). qat: policy (JSON text) or one scheme
    `weights` and `activations` for all; quantizer of integers. smpq: bits, bops (share of uniform 8/8; 0.25
    is 4/4), share of the epochs in which the supernet is trained, permutations an update, updates.
    """

    method: Literal["msq", "qat", "smpq"] = "msq"
    epochs: float = 12.0
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    decay: float = 1e-4
    warm_up: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    distill: float = 0.0
    temperature: float = 4.0
    crop: bool = True
    flip: bool = True
    precision: str = ""
    compile: bool = False
    device: str = "cpu"
    seed: int = 0
    threads: int = 0
    validate: int = 2000
    checkpoint_s: float = 60.0
    stop_s: float = 0.0
    compression: float = 10.67
    activations: str = "float"
    lam: float = 0.5
    alpha: float = 0.3
    rounds: int = 8
    prune_share: float = 0.4
    strength: Literal["gradient", "plain"] = "gradient"
    steps: Literal["learned", "max"] = "learned"
    policy: str = ""
    weights: str = "int4"
    quantizer: Literal["lsq", "roundclamp", "dorefa"] = "lsq"
    ranges: Literal["lsq", "pact"] = "lsq"
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    bops: float = 0.25
    search_share: float = 0.5
    updates: int = 4
    permutations: int = 2

    def __post_init__(self) -> None:
        """Raises UserError for a number that no training could have."""
        positive = {
            "epochs": self.epochs,
            "batch": self.batch,
            "lr": self.lr,
            "temperature": self.temperature,
        }
        for name, value in positive.items():
            if not math.isfinite(value) or value <= 0:
                raise UserError(f"--{name} {value:g} is not above 0; give a positive number")
        shares = {"distill": self.distill, "prune-share": self.prune_share, "search-share": self.search_share}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"--{name} {value:g} is no share; give a number from 0 to 1")
        if self.method == "msq" and not 32 / 8 < self.compression <= _MOST:
            raise UserError(
                f"--compression {self.compression:g} is out of reach: weights have 8 bits (4x) to 2 bits "
                "(16x), so "
                "give a number above 4 and up to 16"
            )
        if self.method == "smpq" and (len(self.bits) < 2 or not all(2 <= b <= 8 for b in self.bits)):
            raise UserError("--bits takes two or more widths from 2 to 8, as in 2,3,4,6,8")

    @property
    def activation_scheme(self) -> Scheme:
        """Of `activations`: a scheme, or a number of bits, unsigned and asymmetric."""
        from passes.quantize import activation_scheme

        text = self.activations
        return activation_scheme(
            f"uint{text}" if text.isdecimal() and text != "32" else "float" if text == "32" else text
        )

    def identity(self) -> dict[str, Any]:
        """What must be the same when a training is continued."""
        found = {key: value for key, value in asdict(self).items() if key not in _FREE}
        return found | {"bits": list(self.bits)}


def require_torch() -> None:
    """Raises UserError where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "training needs torch, which is not installed; run: pip install 'onnxq[train]'"
        ) from None
