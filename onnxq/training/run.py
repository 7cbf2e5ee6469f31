"""One training from a model and data to a quantized model: the pieces of this floor put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onnxq.data import Dataset, check_labels
from onnxq.files import sha256_bytes
from onnxq.training.config import TrainConfig
from onnxq.training.data import Batches
from onnxq.training.export import exported, settled
from onnxq.training.groups import SchemeOptions
from onnxq.training.method import Method
from onnxq.training.msq import Msq, MsqOptions
from onnxq.training.network import Network
from onnxq.training.objective import Objective
from onnxq.training.qat import Qat
from onnxq.training.trainer import Event, Settings, Trainer, accuracy
from passes.core.errors import UnsupportedModelError, UserError
from passes.graph.model import Model, serialize
from passes.policy import Policy

__all__ = ["Outcome", "Run", "chosen_device"]

# Batches on which the statistics of BatchNormalization are estimated at the end.
_STATISTICS = 100


@dataclass(frozen=True)
class Outcome:
    """model: quantized, None where the training stopped before its end. accuracy: of the stored weights, in
    torch, on all validation data; float_accuracy: of the float network there; None without validation
    data."""

    model: Model | None
    policy: Policy | None
    bits: dict[str, int]
    history: list[dict[str, Any]]
    accuracy: float | None = None
    float_accuracy: float | None = None


def chosen_device(name: str) -> torch.device:
    """Raises UserError for a device that is not there."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`device` {name} cannot be used ({reason}); use cpu, or install a torch for it"
        ) from None
    return device


class Run:
    """A training that can be stopped and continued. folder: of its checkpoint and log, None to keep
    nothing."""

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        data: Dataset,
        validation: Dataset | None = None,
        *,
        folder: Path | None = None,
        progress: Callable[[Event], None] | None = None,
    ) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.model, self.progress, self.folder = config, model, progress, folder
        self.device = chosen_device(config.device)
        if not data.labelled and config.target_options.distill < 1:
            raise UserError(
                f"{data.name}: has no labels; add them, or learn from the float model alone (`distill` 1)"
            )
        feed = config.feed_options
        self.data = Batches(data, feed.batch, feed.seed, self.device, feed.crop, feed.flip)
        self.validation = Batches(validation, 1, feed.seed, self.device) if validation is not None else None
        self.network = self._float_network()
        self.network.specialise(self.data.plain(1)[0])
        self.teacher = self._float_network() if config.target_options.distill > 0 else None
        self._check_labels(data, validation)
        self.identity = {
            **config.identity(),
            "model": sha256_bytes(serialize(model)),
            "data": data.fingerprint(),
        }

    def _float_network(self) -> Network:
        network = Network(self.model)
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise UnsupportedModelError(
                f"{self.model.name}: has {len(network.inputs)} inputs and {len(network.outputs)} outputs; "
                "training takes classifiers with one of each"
            )
        return network.to(self.device)

    def _check_labels(self, *datasets: Dataset | None) -> None:
        with torch.no_grad():
            logits = self.network.eval()(self.data.plain(1)[0])
        if logits.ndim != 2:
            raise UnsupportedModelError(
                f"{self.model.name}: its output has the shape {tuple(logits.shape)}; training takes "
                "classifiers, "
                "with logits [batch, classes]"
            )
        for dataset in datasets:
            if dataset is not None and dataset.labelled:
                check_labels(dataset, logits.shape[1])

    def trainer(self, method: Method, settings: Settings, stage: str = "") -> Trainer:
        """The loop around a method; `stage` names a folder of its own for methods of several parts."""
        folder = self.folder / stage if self.folder is not None and stage else self.folder
        return Trainer(
            self.network,
            method,
            self.data,
            Objective(self.config.target_options.distill, self.config.target_options.temperature),
            settings,
            teacher=self.teacher,
            validation=self.validation,
            folder=folder,
            identity=self.identity,
            progress=self.progress,
        )

    def settings(self, epochs: float) -> Settings:
        c = self.config.step_options
        precision = c.precision or ("bfloat16" if self.device.type == "cuda" else "float32")
        return Settings(
            epochs, c.lr, c.momentum, c.decay, c.warm_up, c.optimizer, precision, c.compile,
            c.seed, c.checkpoint_s, c.stop_s, 0, c.validate,
        )  # fmt: skip

    def method(self) -> Method:
        """MSQ or plain training, made on the network."""
        config, sample = self.config, self.data.plain(256)[0]
        schemes = config.scheme_options
        if config.method == "msq":
            steps, pruning = max(round(config.epochs * self.data.steps), 1), config.pruning_options
            options = MsqOptions(
                pruning.compression,
                round(pruning.share * steps),
                pruning.rounds,
                pruning.lam,
                pruning.alpha,
                strength=pruning.strength,
                learned=pruning.learned,
                seed=config.seed,
            )
            return Msq(
                self.network, options, activations=schemes.activations, sample=sample, ranges=schemes.ranges
            )
        policy = self._policy(schemes)
        return Qat(self.network, policy, sample, weights=schemes.quantizer, activations=schemes.ranges)

    def _policy(self, schemes: SchemeOptions) -> Policy:
        from onnxq.training.method import trainable_layers

        layers = trainable_layers(self.network)
        given = schemes.policy
        if given is not None:
            given.check_names(layers)
            return Policy({layer.name: given[layer.name] for layer in layers})
        return Policy({layer.name: schemes.choice for layer in layers})

    def float_accuracy(self) -> float | None:
        """Of the model as it was given."""
        if self.validation is None or not self.validation.dataset.labelled:
            return None
        return accuracy(self._float_network(), self.validation)

    def __call__(self) -> Outcome:
        """Train until the end or `stop_s`. Raises what `Trainer.run` does."""
        before = self.float_accuracy()
        method = self.method()
        trainer = self.trainer(method, self.settings(self.config.epochs))
        if not trainer.run():
            return Outcome(None, None, {}, trainer.history, None, before)
        return self.outcome(method, trainer.history, before)

    def outcome(self, method: Method, history: list[dict[str, Any]], before: float | None) -> Outcome:
        """The file of a trained network, and the accuracy of what is stored in it."""
        result = method.result()
        settled(self.network, result)
        if self.network.moved():
            count = min(_STATISTICS, self.data.steps)
            self.network.estimate_moved(self.data.at(history[-1]["step"] + i)[0] for i in range(count))
        found = None if before is None or self.validation is None else accuracy(self.network, self.validation)
        model = exported(self.network, result)
        return Outcome(model, result.policy, dict(result.bits), history, found, before)
