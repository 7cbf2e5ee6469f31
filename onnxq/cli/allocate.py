"""`allocate`: from a table of sensitivities to policies, without data and without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxq.cli.options import ByteSize, json_option, splitted

if TYPE_CHECKING:
    from onnxq.allocation.problem import Assignment, Problem

__all__ = ["allocate"]


def _assignments(
    problem: Problem,
    strategy: str,
    tau: float,
    bits: tuple[int, ...],
    limits: dict[str, float],
    front: int,
    over: str,
) -> list[tuple[str, Assignment]]:
    from onnxq.allocation import ilp, ilp_front, threshold, threshold_front
    from passes.core.errors import UserError

    if strategy == "threshold":
        if tau:
            return [(f"tau {tau:g}", threshold(problem, tau, bits))]
        sweep = threshold_front(problem, front, bits)
        found = [(f"tau {level:.3g}", a) for level, a in sweep if problem.within(a, limits)]
        if not found:
            raise UserError("no tau gives a policy within the limits; --strategy ilp looks at every policy")
        return found
    if over in limits:
        return [(f"{limits[over]:.6g} {over}", ilp(problem, limits=limits))]
    policies = reversed(list(ilp_front(problem, front, over, limits)))
    return [(f"{problem.size(a) / 1e6:.3f} MB", a) for a in policies]


def _write(output: Path, problem: Problem, found: list[tuple[str, Assignment]]) -> list[Path]:
    """One policy file, or a folder of them; .csv by the name's ending, else JSON."""
    import json

    from onnxq.files import atomic_write

    single = output.suffix in (".json", ".csv")
    if single and len(found) > 1:
        from passes.core.errors import UserError

        raise UserError(
            f"{output}: {len(found)} policies do not fit one file; give a folder, or --budget or --tau"
        )
    written = []
    for number, (_, assignment) in enumerate(found):
        path = output if single else output / f"policy-{number:02d}.json"
        policy = problem.policy(assignment)
        text = policy.to_csv() if path.suffix == ".csv" else json.dumps(policy.to_json(), indent=2) + "\n"
        atomic_write(path, text)
        written.append(path)
    return written


@click.command()
@click.argument("run")
@click.option(
    "--strategy", default="ilp", show_default=True, help="ilp or threshold; the others need data: use tune."
)
@click.option("--tau", type=float, default=0.0, help="threshold: the one tau; default sweeps over it.")
@click.option("--bits", multiple=True, help="threshold: candidate bits, as in 4,6,8; default all.")
@click.option("--budget", type=ByteSize(), default=0.0, help="ilp: size of the file, as in 2.4MB.")
@click.option(
    "--bops-budget", "--bops", "bops", type=float, default=0.0, help="Most bit operations of a sample."
)
@click.option(
    "--costs", multiple=True, metavar="FILE", help="Costs of layers: a latency model, say (docs/COSTS.md)."
)
@click.option("--cost-limit", "limits", multiple=True, help="Most of a cost, as in latency=3.5.")
@click.option(
    "--over", default="", help="What a front is swept over: bytes (default), bops, or a cost's name."
)
@click.option("--front", type=click.IntRange(min=1), default=12, show_default=True, help="Points of a front.")
@click.option("-o", "--output", metavar="OUT", help="POLICY.json, POLICY.csv, or a folder for a front.")
@click.option("--plot", metavar="OUT.png", help="Draw the bits of every layer.")
@json_option
def allocate(
    run: str,
    strategy: str,
    tau: float,
    bits: tuple[str, ...],
    budget: float,
    bops: float,
    costs: tuple[str, ...],
    limits: tuple[str, ...],
    over: str,
    front: int,
    output: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Spend bits by the sensitivities of RUN (a folder that `sensitivity --schemes -o` or `tune` has left).

    ilp takes the least sum of sensitivities under a size; threshold gives each layer the fewest bits whose
    sensitivity is below tau. What comes out are predictions: `tune` and `eval` measure.
    """
    from onnxq.allocation.resources import parse_limits, read_costs
    from onnxq.cli.output import check_output
    from onnxq.cli.terminal import megabytes, print_json, remark, table
    from onnxq.files import atomic_write
    from onnxq.tuning.space import read_space
    from passes.core.errors import UserError

    if strategy not in ("ilp", "threshold"):
        raise UserError(
            f"--strategy {strategy}: is not one of ilp, threshold, which need no data; use onnxq tune"
        )
    if tau < 0 or bops < 0:
        raise UserError("--tau and --bops must not be negative")
    try:
        widths = tuple(int(part) for part in splitted(bits))
    except ValueError:
        raise UserError(f"--bits {','.join(bits)}: are whole numbers, as in 4,6,8") from None
    for target in (output, plot):
        if target:
            check_output(Path(target))
    model, problem = read_space(run)
    for path in costs:
        problem = problem.with_costs(read_costs(path))
    bounds = parse_limits(splitted(limits), list(problem.extra))
    bounds |= {name: most for name, most in (("bytes", budget), ("bops", bops)) if most}
    if over and over not in problem.resources:
        raise UserError(f"--over {over}: is not one of {', '.join(problem.resources)}")
    # One limit alone, and no axis: the one policy that makes the most of it.
    axis = over or next(iter(bounds) if "bytes" not in bounds else iter(("bytes",)), "bytes")
    found = _assignments(problem, strategy, tau, widths, bounds, front, axis)
    written = _write(Path(output), problem, found) if output else []
    if plot:
        from onnxq.report.drawing import png
        from onnxq.report.pictures import allocation_figure

        shown = dict(found[:: max(len(found) // 4, 1)])
        rows = {k: [problem.choices[int(i)].weights.bits for i in a] for k, a in shown.items()}
        sizes = {k: problem.size(a) / 1e6 for k, a in shown.items()}
        atomic_write(Path(plot), png(allocation_figure(model, problem.layers, rows, sizes)))
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "bytes": problem.size(a),
                    "predicted_mse": problem.damage(a),
                    "bops": problem.operations(a),
                    **{name: held.of(a) for name, held in problem.extra.items()},
                    "policy": problem.policy(a).to_json(),
                }
                for name, a in found
            ]
        )
        return
    extra = {f"{name} ({held.unit})" if held.unit else name: held for name, held in problem.extra.items()}
    lines = [
        (
            name,
            megabytes(problem.size(a)),
            f"{problem.damage(a):.4g}",
            f"{problem.operations(a) / 1e9:.2f}",
            *(f"{held.of(a):.4g}" for held in extra.values()),
        )
        for name, a in found
    ]
    heads = ["point", "predicted size", "predicted logit MSE", "GBOPs", *extra]
    table(heads, lines, right=tuple(range(1, len(heads))))
    if written:
        remark(f"{len(written)} policies in {output}" if len(written) > 1 else f"written to {output}")
