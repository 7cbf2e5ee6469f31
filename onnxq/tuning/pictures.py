"""The pictures of a run's search space: sensitivities, allocation, group sizes, how Shapley values settled.

Each is drawn from what lies in the run folder and from the candidates, written there as NAME-MODE.png, and
handed to the report, which holds it as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq.allocation.problem import Problem
from onnxq.allocation.shapley import ShapleyState
from onnxq.files import atomic_write
from onnxq.metrics.reading import Reading
from onnxq.search.candidate import Candidate
from onnxq.search.pareto import Pick
from onnxq.sensitivity.variants import choice_text
from onnxq.tuning.space import is_joint, read_space
from passes.policy import LayerPolicy, Policy

__all__ = ["draw_result", "draw_sensitivity", "draw_shapley"]

Picture = tuple[str, bytes]


def draw_sensitivity(folder: Path, mode: str) -> Picture:
    """`sensitivity-MODE.png`: the table of `space-MODE.json`, a line a choice."""
    # Imported late, as everywhere below: matplotlib takes a second.
    from onnxq.report.drawing import png
    from onnxq.report.pictures import sensitivity_figure

    model, problem = read_space(folder / f"space-{mode}.json")
    costs = {choice_text(problem.choices[k]): problem.cost[:, k].tolist() for k in _shown(problem)}
    return _written(folder, f"sensitivity-{mode}.png", png(sensitivity_figure(model, problem.layers, costs)))


def _shown(problem: Problem) -> list[int]:
    """The choices that have a line: all but float; of pairs, those of the finest weights or activations."""
    kept = [k for k, choice in enumerate(problem.choices) if not choice.is_float]
    if not is_joint(problem.choices):
        return kept
    weights = max(problem.choices[k].weights.bits for k in kept)
    activations = max(problem.choices[k].activations.bits for k in kept)
    return [
        k
        for k in kept
        if problem.choices[k].weights.bits == weights or problem.choices[k].activations.bits == activations
    ]


def draw_result(
    folder: Path,
    mode: str,
    picks: Mapping[str, Pick],
    candidates: Sequence[Candidate],
    metric: Reading,
    baseline: Candidate,
) -> Iterator[Picture]:
    """`allocation-MODE.png`, the bits of that mode's picks; `group_size-MODE.png` where there are several."""
    model, problem = read_space(folder / f"space-{mode}.json")
    chosen = {name: pick.candidate for name, pick in picks.items() if pick.candidate.mode == mode}
    if chosen:
        yield _written(folder, f"allocation-{mode}.png", _allocation(model, problem, chosen))
    picture = _group_sizes(model, [c for c in candidates if c.mode == mode], metric, baseline)
    if picture is not None:
        yield _written(folder, f"group_size-{mode}.png", picture)


def _allocation(model: str, problem: Problem, chosen: Mapping[str, Candidate]) -> bytes:
    from onnxq.report.drawing import png
    from onnxq.report.pictures import allocation_figure

    bits, sizes, smoothed = {}, {}, {}
    for name, candidate in chosen.items():
        policy, title = Policy.from_json(candidate.policy), f"{name} ({candidate.name})"
        bits[title] = [policy[layer].weights.bits for layer in problem.layers]
        smoothed[title] = [at for at, layer in enumerate(problem.layers) if policy[layer].smooth != "none"]
        sizes[title] = candidate.bytes / 1e6
        if is_joint(problem.choices):
            bits[f"{title}, activations"] = [policy[layer].activations.bits for layer in problem.layers]
    return png(allocation_figure(model, problem.layers, bits, sizes, smoothed))


def _group_sizes(
    model: str, candidates: Sequence[Candidate], metric: Reading, baseline: Candidate
) -> bytes | None:
    """Quality and size over G, from candidates that give every layer the same; None for fewer than two G."""
    from onnxq.report.drawing import png
    from onnxq.report.pictures import group_size_figure

    rows, name = dict[str, list[tuple[int, float, float]]](), metric.name
    for candidate in candidates:
        choices = set(Policy.from_json(candidate.policy).layers.values())
        scheme = next(iter(choices), LayerPolicy()).weights
        if len(choices) == 1 and scheme.granularity == "block" and name in candidate.metrics:
            point = (scheme.block_size, metric.scale * candidate.metrics[name], candidate.bytes / 1e6)
            rows.setdefault(f"{scheme.format.upper()}-{scheme.bits}", []).append(point)
    if len({group for points in rows.values() for group, _, _ in points}) < 2:
        return None
    floor = metric.scale * baseline.metrics[name] if name in baseline.metrics else None
    return png(group_size_figure(model, dict(sorted(rows.items())), metric.axis, floor))


def draw_shapley(folder: Path, mode: str, model: str, state: ShapleyState) -> Picture:
    """`shapley-MODE.png`: the change of psi, and what a layer's step is worth beside what S predicts."""
    from onnxq.report.drawing import png
    from onnxq.report.pictures import shapley_figure

    seen = state.seen > 0
    top = np.where(seen, np.abs(state.psi), 0).argmax(axis=1)
    rows = np.arange(len(top))
    values = {
        "mean": state.psi[rows, top].tolist(),
        "half": state.interval[rows, top].tolist(),
        "expected": (state.expected / np.maximum(state.seen, 1))[rows, top].tolist(),
    }
    layers, factors = state.problem.layers, state.factors.tolist()
    figure = shapley_figure(model, layers, state.changes, values, factors)
    return _written(folder, f"shapley-{mode}.png", png(figure))


def _written(folder: Path, name: str, picture: bytes) -> Picture:
    atomic_write(folder / name, picture)
    return name, picture
