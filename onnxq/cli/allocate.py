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
    problem: Problem, strategy: str, tau: float, bits: tuple[int, ...], budget: float, bops: float, front: int
) -> list[tuple[str, Assignment]]:
    from onnxq.allocation import ilp, ilp_front, threshold, threshold_front

    if strategy == "threshold":
        if tau:
            return [(f"tau {tau:g}", threshold(problem, tau, bits))]
        return [(f"tau {level:.3g}", found) for level, found in threshold_front(problem, front, bits)]
    if budget or bops:
        wanted = budget or float(problem.size(problem.uniform(len(problem.choices) - 1)))
        return [(f"{wanted / 1e6:.3f} MB", ilp(problem, wanted, bops=bops))]
    return [(f"{problem.size(a) / 1e6:.3f} MB", a) for a in reversed(list(ilp_front(problem, front)))]


def _write(output: Path, problem: Problem, found: list[tuple[str, Assignment]]) -> list[Path]:
    """One policy file, or a folder of them; .csv by the name's ending, else JSON."""
    import json

    from onnxq.files import atomic_write

    single = output.suffix in (".json", ".csv")
    if single and len(found) > 1:
        from passes.errors import UserError

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
@click.option("--bops", type=float, default=0.0, help="ilp: most bit operations of a sample.")
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
    front: int,
    output: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Spend bits by the sensitivities of RUN (a folder that `sensitivity --schemes -o` or `tune` has left).

    ilp takes the least sum of sensitivities under a size; threshold gives each layer the fewest bits whose
    sensitivity is below tau. What comes out are predictions: `tune` and `eval` measure.
    """
    from onnxq.cli.output import check_output
    from onnxq.cli.terminal import megabytes, print_json, remark, table
    from onnxq.files import atomic_write
    from onnxq.tuning.space import read_space
    from passes.errors import UserError

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
    found = _assignments(problem, strategy, tau, widths, budget, bops, front)
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
                    "policy": problem.policy(a).to_json(),
                }
                for name, a in found
            ]
        )
        return
    lines = [
        (name, megabytes(problem.size(a)), f"{problem.damage(a):.4g}", f"{problem.operations(a) / 1e9:.2f}")
        for name, a in found
    ]
    table(["point", "predicted size", "predicted logit MSE", "GBOPs"], lines, right=(1, 2, 3))
    if written:
        remark(f"{len(written)} policies in {output}" if len(written) > 1 else f"written to {output}")
