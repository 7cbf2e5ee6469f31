"""Strategy `ranking` around its proposals: layer errors, their order, and modes not worth going on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnxq.search.candidate import Candidate
from onnxq.search.journal import Journal
from onnxq.search.layer_errors import LayerErrors, measure_layer_errors
from onnxq.search.ranking import Proposal, coarse_to_fine
from onnxq.tuning.measure import Measurer
from onnxq.tuning.models import build_model
from onnxq.tuning.outcome import Event
from onnxq.tuning.prepare import Prepared
from passes.graph.select import select_layers
from passes.policy import Policy

__all__ = ["crawling", "in_order", "ranked_errors", "searched_layers"]

# A mode whose fully quantized candidate takes this many times as long as float is given up.
_CRAWLING = 3.0


def searched_layers(prepared: Prepared) -> list[str]:
    """Layers in the search: all but those that are excluded by name."""
    exclude = prepared.config.scheme_options.exclude
    left_out = {layer.name for layer in select_layers(prepared.model, exclude)} if exclude else set()
    return [layer.name for layer in prepared.layers if layer.name not in left_out]


def ranked_errors(
    mode: str, measurer: Measurer, journal: Journal, emit: Callable[[Event], None]
) -> list[LayerErrors]:
    """Errors of every layer in `mode` under its cheapest scheme; from the journal if measured before."""
    held = journal.get("errors", mode)
    if held is not None:
        return [LayerErrors(**entry) for entry in held]
    prepared = measurer.prepared
    policy = Policy(dict.fromkeys(searched_layers(prepared), prepared.config.scheme_options.ladders[mode][0]))
    measurer.calibrate_once(policy)
    quantized = build_model(prepared.model, policy, measurer.ranges)
    count = min(prepared.config.data_options.ranking_samples, len(prepared.calibration))
    errors = measure_layer_errors(
        prepared.model,
        quantized,
        policy,
        prepared.calibration.subset(range(count)),
        progress=lambda done: emit(Event("rank", done, count, f"layer errors, {mode}")),
    )
    journal.append("errors", mode, [vars(entry) for entry in errors])
    return errors


def in_order(
    proposals: Sequence[Proposal], modes: Sequence[str], hurried: bool
) -> Iterator[tuple[int, Proposal]]:
    """(number, proposal), step by step; when hurried coarse to fine over each mode in turn."""
    numbered = {proposal.name: index for index, proposal in enumerate(proposals, start=1)}
    if not hurried:
        yield from ((numbered[p.name], p) for p in proposals)
        return
    queues = [list(coarse_to_fine([p for p in proposals if p.mode == mode])) for mode in modes]
    for position in range(max(map(len, queues), default=0)):
        for queue in queues:
            if position < len(queue):
                yield numbered[queue[position].name], queue[position]


def crawling(first: Candidate, modes: Sequence[str]) -> str:
    """Why a mode is so slow here that its other steps are not worth measuring; empty when it is not.

    Only where another mode is left and latency counts: integer convolutions with dynamic ranges have no fast
    kernel in ONNX Runtime, and measuring all their steps would take most of the run.
    """
    if first.step or first.latency is None or len(modes) < 2 or first.latency.ratio <= _CRAWLING:
        return ""
    return (
        f"{first.mode}: given up after {first.name}, which takes {first.latency.ratio:.1f} times as long "
        f"as float here; `modes` {first.mode} alone measures every step"
    )
