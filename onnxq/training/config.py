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
from passes.core.errors import UserError
from passes.core.fields import Option, When, check_fields, declared
from passes.graph.jsontext import parse_json
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import activation_scheme

__all__ = ["TrainConfig", "require_torch"]

# Fields that may differ when a training is continued: they decide when and where it runs, not what comes out.
_FREE = ("checkpoint_s", "stop_s", "threads")
_MOST = 32 / 2
_MSQ, _QAT, _SMPQ = When("method", "msq"), When("method", "qat"), When("method", "smpq")
_SGD, _UNIFORM = When("optimizer", "sgd"), When("policy", absent=True)
_Quantizer = Literal["lsq", "roundclamp", "dorefa"]
_BITS = (2, 3, 4, 6, 8)
_DISTILL = "Share of the float model's outputs in the loss; 1 needs no labels."
_ALPHA = "Share of nonzero lowest bits below which a layer loses one."
_PRUNE = "Part of the training in which bits are taken away."
_BOPS = "Bit operations, as a share of uniform 8/8; 0.25 is 4/4."
_SUPERNET = "Part of the epochs in which the supernet is trained."


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

    method: Annotated[Literal["msq", "qat", "smpq"], Option("What finds the bits of the weights.")] = "msq"
    epochs: Annotated[float, Option("Passes over the data; may be a fraction.", above=0)] = 12.0
    batch: Annotated[int, Option("Samples of a step.", least=1)] = 128
    lr: Annotated[float, Option("Peak of the learning rate, which falls by a cosine.", above=0)] = 0.05
    momentum: Annotated[float, Option("Nesterov momentum.", least=0, most=1, when=_SGD)] = 0.9
    decay: Annotated[float, Option("Weight decay of the layers' weights.", least=0)] = 1e-4
    warm_up: Annotated[float, Option(least=0, most=1)] = 0.05
    optimizer: Annotated[Literal["sgd", "adamw"], Option("What takes the steps.")] = "sgd"
    distill: Annotated[float, Option(_DISTILL, least=0, most=1)] = 0.0
    temperature: Annotated[float, Option("Softens the soft labels.", above=0, when=When("distill"))] = 4.0
    crop: bool = True
    flip: bool = True
    precision: Literal["", "float32", "bfloat16"] = ""
    compile: bool = False
    device: Annotated[str, Option("Where torch computes: cpu, cuda, cuda:1.")] = "cpu"
    seed: int = 0
    threads: Annotated[int, Option(least=0)] = 0
    validate: Annotated[int, Option(least=0)] = 2000
    checkpoint_s: Annotated[float, Option(least=0)] = 60.0
    stop_s: Annotated[float, Option(least=0)] = 0.0
    compression: Annotated[float, Option("32 over the mean bits of a weight, up to 16.", when=_MSQ)] = 10.67
    activations: Annotated[str, Option("Bits (3), a scheme (uint8) or float.", when=_UNIFORM)] = "float"
    lam: Annotated[float, Option("Strength of the regularizer.", least=0, when=_MSQ)] = 0.5
    alpha: Annotated[float, Option(_ALPHA, least=0, most=1, when=_MSQ)] = 0.3
    rounds: Annotated[int, Option("How often bits are taken away.", least=1, when=_MSQ)] = 8
    prune_share: Annotated[float, Option(_PRUNE, least=0, most=1, when=_MSQ)] = 0.4
    strength: Annotated[Literal["gradient", "plain"], Option("What lambda scales.", when=_MSQ)] = "gradient"
    steps: Annotated[Literal["learned", "max"], Option("Step size of the weights.", when=_MSQ)] = "learned"
    policy: Annotated[str, Option("A policy file: schemes layer by layer.", when=_QAT)] = ""
    weights: Annotated[str, Option("One scheme for all layers.", when=(_QAT, _UNIFORM))] = "int4"
    quantizer: Annotated[_Quantizer, Option("How integer weights are learned.", when=_QAT)] = "lsq"
    ranges: Annotated[Literal["lsq", "pact"], Option("How ranges of activations are learned.")] = "lsq"
    bits: Annotated[tuple[int, ...], Option("Bits to choose from.", least=2, most=8, when=_SMPQ)] = _BITS
    bops: Annotated[float, Option(_BOPS, above=0, when=_SMPQ)] = 0.25
    search_share: Annotated[float, Option(_SUPERNET, least=0, most=1, when=_SMPQ)] = 0.5
    updates: Annotated[int, Option("Updates of alpha, the choice of bits.", least=1, when=_SMPQ)] = 4
    permutations: Annotated[int, Option("Walks of each update of alpha.", least=1, when=_SMPQ)] = 2
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
