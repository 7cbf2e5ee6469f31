"""What one training is told, and the check that it makes sense; no torch needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from onnxq.training.groups import (
    FeedOptions,
    PruningOptions,
    SchemeOptions,
    SearchOptions,
    StepOptions,
    TargetOptions,
)
from passes.errors import UserError
from passes.fields import Option, When, check_fields, declared
from passes.jsontext import parse_json
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import activation_scheme

__all__ = ["TrainConfig", "require_torch"]

# Fields that may differ when a training is continued: they decide when and where it runs, not what comes out.
_FREE = ("checkpoint_s", "stop_s", "threads")
_MOST = 32 / 2
_MSQ, _QAT, _SMPQ = When("method", "msq"), When("method", "qat"), When("method", "smpq")
_Above0 = Annotated[float, Option(above=0)]
_Amount = Annotated[float, Option(least=0)]
_Share = Annotated[float, Option(least=0, most=1)]
_Count = Annotated[int, Option(least=0)]
_Positive = Annotated[int, Option(least=1)]


@dataclass(frozen=True)
class TrainConfig:
    """What a training is told. Wrong words and numbers are refused when it is made.

    epochs may be a fraction. lr: peak. distill: share of the float network's soft labels in the loss.
    precision: empty chooses bfloat16 on CUDA and float32 elsewhere. threads: of torch, 0 leaves them to it.

    ranges: how those of quantized activations are learned (onnxq/training/activations.py). activations: a
    scheme, or a number of bits, unsigned and asymmetric.

    msq: compression (32 means nothing, 16 is 2 bits a weight), lam, alpha, rounds, prune_share (of the
    steps), strength and steps (see onnxq/training/msq.py). qat: policy (JSON text) or one scheme `weights`
    and `activations` for all; quantizer of integers. smpq: bits, bops (share of uniform 8/8; 0.25 is 4/4),
    share of the epochs in which the supernet is trained, permutations an update, updates.

    The fields whose names end in `_options` are the same, parsed; parts of a training read those.
    """

    method: Literal["msq", "qat", "smpq"] = "msq"
    epochs: _Above0 = 12.0
    batch: _Positive = 128
    lr: _Above0 = 0.05
    momentum: Annotated[float, Option(least=0, most=1, when=When("optimizer", "sgd"))] = 0.9
    decay: _Amount = 1e-4
    warm_up: _Share = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    distill: _Share = 0.0
    temperature: Annotated[float, Option(above=0, when=When("distill"))] = 4.0
    crop: bool = True
    flip: bool = True
    precision: Literal["", "float32", "bfloat16"] = ""
    compile: bool = False
    device: str = "cpu"
    seed: int = 0
    threads: _Count = 0
    validate: _Count = 2000
    checkpoint_s: _Amount = 60.0
    stop_s: _Amount = 0.0
    compression: Annotated[float, Option(above=0, when=_MSQ)] = 10.67
    activations: Annotated[str, Option(when=When("policy", absent=True))] = "float"
    lam: Annotated[float, Option(least=0, when=_MSQ)] = 0.5
    alpha: Annotated[float, Option(least=0, most=1, when=_MSQ)] = 0.3
    rounds: Annotated[int, Option(least=1, when=_MSQ)] = 8
    prune_share: Annotated[float, Option(least=0, most=1, when=_MSQ)] = 0.4
    strength: Annotated[Literal["gradient", "plain"], Option(when=_MSQ)] = "gradient"
    steps: Annotated[Literal["learned", "max"], Option(when=_MSQ)] = "learned"
    policy: Annotated[str, Option(when=_QAT)] = ""
    weights: Annotated[str, Option(when=(_QAT, When("policy", absent=True)))] = "int4"
    quantizer: Annotated[Literal["lsq", "roundclamp", "dorefa"], Option(when=_QAT)] = "lsq"
    ranges: Literal["lsq", "pact"] = "lsq"
    bits: Annotated[tuple[int, ...], Option(least=2, most=8, when=_SMPQ)] = (2, 3, 4, 6, 8)
    bops: Annotated[float, Option(above=0, when=_SMPQ)] = 0.25
    search_share: Annotated[float, Option(least=0, most=1, when=_SMPQ)] = 0.5
    updates: Annotated[int, Option(least=1, when=_SMPQ)] = 4
    permutations: Annotated[int, Option(least=1, when=_SMPQ)] = 2
    feed_options: FeedOptions = field(init=False, repr=False, compare=False)
    target_options: TargetOptions = field(init=False, repr=False, compare=False)
    step_options: StepOptions = field(init=False, repr=False, compare=False)
    scheme_options: SchemeOptions = field(init=False, repr=False, compare=False)
    pruning_options: PruningOptions = field(init=False, repr=False, compare=False)
    search_options: SearchOptions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises UserError for a number that no training could have."""
        check_fields(self)
        if self.method == "msq" and not 32 / 8 < self.compression <= _MOST:
            raise UserError(
                f"`compression` {self.compression:g} is out of reach: weights have 8 bits (4x) to 2 bits "
                "(16x), so give a number above 4 and up to 16"
            )
        if self.method == "smpq" and len(self.bits) < 2:
            raise UserError("`bits` takes two or more widths from 2 to 8, as in 2,3,4,6,8")
        for name, group in self._groups().items():
            object.__setattr__(self, name, group)

    def _groups(self) -> dict[str, object]:
        """Every group, by the name of its field."""
        c, seed = self, self.seed
        given = Policy.from_json(parse_json(c.policy, "the policy")) if c.policy else None
        choice = LayerPolicy(Scheme.parse(c.weights), _activations(c.activations))
        return {
            "feed_options": FeedOptions(c.batch, c.crop, c.flip, seed),
            "target_options": TargetOptions(c.distill, c.temperature),
            "step_options": StepOptions(
                c.epochs, c.lr, c.momentum, c.decay, c.warm_up, c.optimizer, c.precision or None, c.compile,
                seed, c.checkpoint_s, c.stop_s, c.validate,
            ),
            "scheme_options": SchemeOptions(choice, given, c.quantizer, c.ranges),
            "pruning_options": PruningOptions(
                c.compression, c.prune_share, c.rounds, c.lam, c.alpha, c.strength, c.steps == "learned"
            ),
            "search_options": SearchOptions(c.bits, c.bops, c.search_share, c.updates, c.permutations),
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What must be the same when a training is continued."""
        found = {name: getattr(self, name) for name in declared(TrainConfig) if name not in _FREE}
        return found | {"bits": list(self.bits)}


def _activations(text: str) -> Scheme:
    """A scheme, or a number of bits, unsigned and asymmetric."""
    if text.isdecimal():
        text = "float" if text == "32" else f"uint{text}"
    return activation_scheme(text)


def require_torch() -> None:
    """Raises UserError where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "training needs torch, which is not installed; run: pip install 'onnxq[train]'"
        ) from None
