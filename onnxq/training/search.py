"""SMPQ from beginning to end: the supernet is trained, alpha becomes a policy, the policy is fine-tuned.

A tenth of the training data is held out for alpha. The fine-tuning begins with the supernet's weights, and
with the step sizes and ranges that it learned for the chosen widths.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from onnxq.files import atomic_write_json
from onnxq.training.data import Batches
from onnxq.training.objective import Objective
from onnxq.training.qat import Qat
from onnxq.training.quantizers import Lsq
from onnxq.training.run import Outcome, Run
from onnxq.training.supernet import SearchOptions, Supernet, discretized
from passes.core.errors import UserError
from passes.policy import Policy

__all__ = ["held_out_share", "search", "supernet_of"]

held_out_share = 0.1
_STAGE = "search"


def _split(run: Run) -> tuple[Batches, Batches]:
    """(data for the weights, data for alpha)."""
    whole = run.data.dataset
    order = np.random.default_rng(run.config.seed).permutation(len(whole))
    held = max(int(held_out_share * len(whole)), 1)
    parts = [whole.subset([int(i) for i in sorted(chosen)]) for chosen in (order[held:], order[:held])]
    feed = run.config.feed_options
    make = [Batches(p, min(feed.batch, len(p)), feed.seed, run.device, feed.crop, feed.flip) for p in parts]
    return make[0], make[1]


def supernet_of(run: Run, held_out: Batches, total: int) -> Supernet:
    """The method of the first stage. Raises UserError where no uniform policy fits the budget of BOPs."""
    config, schemes = run.config.search_options, run.config.scheme_options
    scheme = schemes.activations
    fits = [i for i, bits in enumerate(config.bits) if bits * scheme.bits <= config.bops * 64 + 1e-9]
    if not fits:
        raise UserError(
            f"`bops` {config.bops:g}: even {config.bits[0]}-bit weights with activations in {scheme} need "
            f"{config.bits[0] * scheme.bits / 64:g} of uniform 8/8; give more, or fewer bits of activations"
        )
    options = SearchOptions(
        config.bits,
        scheme,
        total,
        config.updates,
        config.permutations,
        start=fits[-1],
        seed=run.config.seed,
        ranges=schemes.ranges,
    )
    target = run.config.target_options
    objective = Objective(target.distill, target.temperature)
    sample = run.data.plain(256)[0]
    return Supernet(run.network, options, held_out, objective, run.teacher, sample)


def _inherit(method: Qat, supernet: Supernet, policy: Policy) -> None:
    """Step sizes and ranges of the chosen widths."""
    with torch.no_grad():
        for name, quantizer in method.quantizers.items():
            if isinstance(quantizer, Lsq):
                width = supernet.options.bits.index(policy[name].weights.bits)
                quantizer.step.fill_(float(supernet.quantizers[name].steps[width]))
        for tensor, held in method.activations.quantizers.items():
            held.value.copy_(supernet.activations.quantizers[tensor].value)


def search(run: Run) -> Outcome:
    """Both stages; continued where they were stopped."""
    config, whole = run.config, run.data
    before = run.float_accuracy()
    training, held_out = _split(run)
    steps = round(config.search_options.share * config.epochs * whole.steps)
    run.data = training
    supernet = supernet_of(run, held_out, steps)
    first = run.trainer(supernet, run.settings(steps / training.steps), _STAGE)
    if not first.run():
        return Outcome(None, None, {}, first.history, None, before)
    policy = discretized(supernet, config.search_options.bops)
    if run.folder is not None:
        document = {"alpha": supernet.alpha.tolist(), "policy": policy.to_json()}
        atomic_write_json(run.folder / _STAGE / "search.json", document)
    run.network.drop_quantizers()
    run.data = whole
    method = Qat(
        run.network, policy, whole.plain(256)[0], weights="lsq", activations=config.scheme_options.ranges
    )
    _inherit(method, supernet, policy)
    settings = run.settings(config.epochs * (1 - config.search_options.share))
    if settings.stop_s:
        settings = replace(settings, stop_s=max(settings.stop_s - first.session_s, 1.0))
    second = run.trainer(method, settings)
    history = first.history
    if not second.run():
        return Outcome(None, None, {}, second.history, None, before)
    return run.outcome(method, second.history or history, before)
