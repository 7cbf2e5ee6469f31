"""`build` and `report`: what to do with a run that is there."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli.options import hub_option, json_option
from onnxq.cli.terminal import say

__all__ = ["build", "report"]


@click.command()
@click.argument("run")
@click.argument("candidate")
@click.option("-o", "--output", metavar="OUT", help="Where to write; default CANDIDATE.onnx in this folder.")
@click.option("--model", metavar="M", help="Where the original model lies now, if not where it was tuned.")
@click.option("--trust", is_flag=True, help="Run the module:callable that the run folder names as its data.")
@hub_option
def build(
    run: str, candidate: str, output: str | None, model: str | None, trust: bool, hub: str | None
) -> None:
    """Write CANDIDATE of RUN (a name such as static-003, or a pick: balanced, smallest, best-accuracy)."""
    from onnxq.cli.output import check_output
    from onnxq.cli.terminal import megabytes, remark
    from onnxq.hub import resolve
    from onnxq.proof import write_model
    from onnxq.report import load_report
    from onnxq.report.readings import reading_in
    from onnxq.tuning import build_candidate

    target = Path(output or f"{candidate}.onnx")
    if target.is_dir():
        target = target / f"{candidate}.onnx"
    check_output(target, Path(model) if model else None)
    built, found = build_candidate(run, candidate, str(resolve(model, hub)) if model else None, trust=trust)
    written = write_model(built, target)
    document = load_report(run)
    shown = ", ".join(
        f"{name} {reading_in(document, name).format(value)}" for name, value in found.metrics.items()
    )
    say(f"{target}: {found.name}, {megabytes(written.size)}, {shown}")
    remark(f"  {written.proof.sentence()}")


@click.command()
@click.argument("runs", metavar="RUN [RUN2 ...]", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FOLDER", help="Of a comparison; default ./compare.")
@json_option
def report(runs: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Render the report of a run again (also while it goes on), or compare several runs."""
    from onnxq.cli.output import check_output
    from onnxq.cli.show import print_report
    from onnxq.cli.terminal import megabytes, print_json, table
    from onnxq.report import load_report, write_comparison, write_report
    from onnxq.report.readings import main_reading

    if len(runs) == 1:
        document = load_report(runs[0])
        write_report(runs[0], document)
        if as_json:
            print_json(document)
        else:
            print_report(document, Path(runs[0]))
        return
    folder = Path(output or "compare")
    check_output(folder / "compare.html")
    comparison = write_comparison(runs, folder)
    if as_json:
        print_json(comparison)
        return
    metric = main_reading(comparison)
    rows = [
        (
            row["run"],
            row["pick"],
            row["candidate"],
            metric.format(float(row["value"]), table=True),
            megabytes(row["bytes"]),
            f"{row['latency']:.2f}" if row["latency"] else "",
        )
        for row in comparison["rows"]
    ]
    table(["run", "pick", "candidate", metric.name, "size", "latency ratio"], rows, right=(3, 4, 5))
    say(comparison["summary"])
    say(f"compared in {folder / 'compare.html'}")
