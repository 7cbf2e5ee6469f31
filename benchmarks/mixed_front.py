"""Every strategy at equal sizes: EfficientNet-Lite0, weights only, GSE G = 32, b in {2, 3, 4, 6, 8}.

    python benchmarks/mixed_front.py [--folder F] [--rounding gptq] [--damping auto]
        [--schemes int4:channel,gse4,...] [--permutations 10] [--generations 10] [--skip-shapley]

Sensitivities, Shapley values and evolution on the 100 calibration images; each policy saved as a file,
loaded, and run over the 400 evaluation images. With --rounding gptq, sensitivities and MSEs are of weights
that were rounded on 60 of the calibration images, measured on the other 40; policies are rounded on all 100.
Sizes are those of the weights (the file less what no policy changes), as shares of uniform GSE-8. `auto` is
the best of what `tune --strategy auto` proposes at or below the size, chosen by logit MSE on calibration
images, so that it has seen no evaluated image; `auto, front` is the best of them as a run of tune has it,
which measures every proposal. Started again on the same folder it goes on. CPU seconds of a strategy count
what it needed beyond the sensitivities, which have a row of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from imagenet import prepared, split

from onnxq.allocation import Problem, evolve, ilp, ilp_front, threshold_front
from onnxq.allocation.problem import Assignment
from onnxq.allocation.shapley import value_problem
from onnxq.evaluation import load_session
from onnxq.search import Journal
from onnxq.sensitivity import Settings
from onnxq.tuning import TuneConfig
from onnxq.tuning.allocate import make_rounded, parted
from onnxq.tuning.file_size import file_bytes
from onnxq.tuning.models import make_rounder, saved_bytes
from onnxq.tuning.space import Space
from onnxq.tuning.strategies import Search
from onnxq.tuning.strategies.ilp import paired as with_neighbours
from onnxq.tuning.strategies.shapley import shapley_state
from passes import Context, LayerPolicy, Quantize, Scheme, find_layers, save
from passes.formats.sizes import layer_bytes
from passes.graph.layers import macs
from passes.opset import upgrade
from passes.policy import Policy
from passes.quantize import required_policy_opset

SCHEMES = "gse2,gse3,gse4,gse6,gse8"
SHARES = (0.67, 0.5, 0.4, 0.33)


class Bench:
    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.model, self.rounding = folder, prepared(), args.rounding
        self.layers = find_layers(self.model)
        self.calibration, self.evaluation = split(self.model)
        self.config = TuneConfig(
            model="",
            data="",
            strategy="auto",
            permutations=args.permutations,
            generations=args.generations,
            rounding=args.rounding,
            damping=args.damping,
        )
        told = f"mixed_front {args.rounding} {args.damping} {args.schemes}"
        self.journal = Journal(folder, {"bench": told})
        settings = Settings(0.1, 1, 2**29, 0)
        fit, seen = parted(self.calibration, self.model, self.config.rounding_options)
        rounded = make_rounded(self.config.rounding_options, self.model, fit, lambda *_: None)
        self.space = Space(self.model, self.layers, seen, self.journal, settings, rounded=rounded)
        self.cpu: dict[str, float] = dict(self.journal.records("cpu"))
        choices = [LayerPolicy(Scheme.parse(text)) for text in args.schemes.split(",")]
        self.problem: Problem = self.timed(
            "sensitivities",
            lambda: self.space.problem(choices, file_bytes=saved_bytes(self.model), macs=macs(self.model)),
        )
        self.weigh = functools.partial(file_bytes, self.model)
        # Of uniform GSE-8, whatever the schemes are.
        self.whole = sum(layer_bytes(layer, Scheme.parse("gse8")) for layer in self.layers)

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """CPU seconds of the first time are kept: a second run takes results from the journal."""
        before = len(self.journal.records("value")) + len(self.journal.records("sensitivity"))
        start = time.process_time()
        result = work()
        after = len(self.journal.records("value")) + len(self.journal.records("sensitivity"))
        if after > before or name not in self.cpu:
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - start
            self.journal.append("cpu", name, self.cpu[name])
            self.journal.append("evaluations", name, self.evaluations(name) + after - before)
        return result

    def evaluations(self, name: str) -> int:
        return int(self.journal.get("evaluations", name) or 0)

    def budget(self, share: float) -> float:
        return share * self.whole + self.problem.rest

    def top1(self, assignment: Assignment) -> dict[str, Any]:
        key = "".join(map(str, assignment.tolist()))
        held = self.journal.get("top1", key)
        if held is None:
            held = self.measure(assignment)
            self.journal.append("top1", key, held)
        return dict(held)

    def search(self, weigh: Callable[[Policy], int]) -> Search:
        """What strategies work with."""
        goal, ladder = self.config.search_options.goal, self.config.ladder("weights")
        opened = self.problem, self.space
        return Search("weights", goal, ladder, "top1", list, weigh, lambda: opened)

    def strategies(self) -> dict[str, dict[float, Assignment]]:
        p, found = self.problem, {}
        largest = {share: self.budget(share) for share in SHARES}
        front = [a for _, a in threshold_front(p, 1000)]
        found["threshold"] = {
            s: max((a for a in front if p.size(a) <= b), key=p.size) for s, b in largest.items()
        }
        found["ilp"] = self.timed("ilp", lambda: {s: ilp(p, b) for s, b in largest.items()})
        search = self.search(self.weigh)
        paired = self.timed("ilp-pairs", lambda: with_neighbours(search))
        found["ilp-pairs"] = {s: ilp(paired, b) for s, b in largest.items()}
        seeds = [*ilp_front(p, 8), *(a for _, a in threshold_front(p, 6)), *found["ilp-pairs"].values()]
        evolved = self.timed(
            "nsga2",
            lambda: evolve(paired, seeds, self.mse, generations=self.config.generations, seed=0),
        )
        found["nsga2"] = {
            s: min((e for e in evolved if e.bytes <= b), key=lambda e: e.mse).assignment
            for s, b in largest.items()
        }
        auto = [*found["threshold"].values(), *found["ilp"].values(), *found["ilp-pairs"].values()]
        auto += [e.assignment for e in evolved]
        found["auto"] = self.timed(
            "auto",
            lambda: {s: min((a for a in auto if p.size(a) <= b), key=self.mse) for s, b in largest.items()},
        )
        return found

    def shapley(self) -> tuple[dict[float, Assignment], Assignment, Any]:
        search, count = self.search(self.weigh), self.config.permutations
        state = self.timed("shapley", lambda: shapley_state(search, count))
        values = value_problem(self.problem, state)
        return {s: ilp(values, self.budget(s)) for s in SHARES}, state.policy, state

    def front(self, points: dict[str, dict[float, Assignment]]) -> dict[float, Assignment]:
        """Of what was measured for the strategies that are in `auto`, the best at or below each size."""
        every = [a for name in ("threshold", "ilp", "ilp-pairs", "nsga2") for a in points[name].values()]

        def best(budget: float) -> Assignment:
            fitting = [a for a in every if self.problem.size(a) <= budget]
            return max(fitting, key=lambda a: (self.top1(a)["hits"].count("1"), -self.problem.size(a)))

        return {share: best(self.budget(share)) for share in SHARES}

    def mse(self, assignment: Assignment) -> float:
        return self.space.mse(self.problem, assignment)

    def measure(self, assignment: Assignment) -> dict[str, Any]:
        """From the saved file: bytes, prediction, and one character per image: whether it was right."""
        policy, path = self.problem.policy(assignment), self.folder / "point.onnx"
        lifted = upgrade(self.model, required_policy_opset(policy), "the policy", Context())
        start = time.process_time()
        step = dataclasses.replace(Quantize.of(policy), rounding=self.rounding)
        context = Context(check=False, rounder=make_rounder(self.config.rounding_options, self.calibration))
        save(step(lifted, context).model, path)
        seconds = time.process_time() - start
        session = load_session(path, threads=1)
        name = session.get_inputs()[0].name
        hits = [
            session.run(None, {name: b.inputs[name]})[0].argmax(1) == b.labels
            for b in self.evaluation.batches(4)
        ]
        return {
            "bytes": path.stat().st_size,
            "predicted": self.problem.size(assignment),
            "build cpu s": seconds,
            "hits": "".join("1" if hit else "0" for hit in np.concatenate(hits)),
        }


def bits(entry: dict[str, Any]) -> Any:
    return np.array([character == "1" for character in entry["hits"]], np.float64)


def row(bench: Bench, name: str, points: dict[float, Assignment], best: dict[float, Any]) -> str:
    cells = []
    for share, assignment in points.items():
        entry = bench.top1(assignment)
        hits = bits(entry)
        gap = hits - best.get(share, hits)
        cells.append(
            f"{hits.mean():.4f} ({gap.mean():+.4f} +- {gap.std() / np.sqrt(len(gap)):.4f}, "
            f"{entry['bytes'] / 1e6:.3f} MB, predicted {entry['predicted'] / 1e6:.3f})"
        )
    cost = f"{bench.cpu.get(name, 0.0) / 60:.1f}"
    return f"| {name} | {' | '.join(cells)} | {bench.evaluations(name)} | {cost} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--permutations", type=int, default=10)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--rounding", default="nearest", choices=["nearest", "bias", "gptq"])
    parser.add_argument("--damping", default="1.0")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--skip-shapley", action="store_true")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    bench = Bench(folder, args)
    points = bench.strategies()
    best = {s: bits(bench.top1(a)) for s, a in points["auto"].items()}
    count, cpu = bench.evaluations("sensitivities"), bench.cpu["sensitivities"]
    print(f"sensitivities: {count} variants, {cpu:.0f} CPU s")
    print("| strategy | " + " | ".join(f"{s:g}x" for s in SHARES) + " | evaluations | CPU min |", flush=True)
    for name, mine in points.items():
        print(row(bench, name, mine, best), flush=True)
    print(row(bench, "auto, front", bench.front(points), best), flush=True)
    if args.skip_shapley:
        return
    mine, alpha, state = bench.shapley()
    print(row(bench, "shapley", mine, best), flush=True)
    entry = bench.top1(alpha)
    share = (entry["predicted"] - bench.problem.rest) / bench.whole
    print(f"shapley, plain argmax of alpha: {bits(entry).mean():.4f} at {share:.3f}x")
    print("change of psi with each walk:", " ".join(f"{change:.3f}" for change in state.changes))
    print(f"95 % interval / |psi|, median over players: {median_interval(state):.2f}")
    factors = " ".join(f"{q:.2f}" for q in np.percentile(state.factors, [0, 25, 50, 75, 100]))
    print(f"factors on the layers' sensitivities, quartiles: {factors}")
    (folder / "shapley.json").write_text(json.dumps({"psi": state.psi.tolist()}))


def median_interval(state: Any) -> float:
    psi, half = np.abs(state.psi), state.interval
    known = (psi > 0) & np.isfinite(half)
    return float(np.median(half[known] / psi[known]))


if __name__ == "__main__":
    main()
