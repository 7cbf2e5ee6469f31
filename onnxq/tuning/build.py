"""Build any candidate of a run again, from the report, the journal's ranges and the original model."""

from __future__ import annotations

import difflib
from pathlib import Path

from onnxq.data import runs_code
from onnxq.files import sha256_bytes
from onnxq.report import load_report
from onnxq.search import Candidate, read_journal
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.groups import DataOptions
from onnxq.tuning.models import build_model, make_rounder
from onnxq.tuning.prepare import model_hash, open_data, prepare_model, recorded_ranges
from passes.core.base import Context
from passes.core.errors import ResumeError, UserError
from passes.graph.model import Model, check, is_large, serialize
from passes.policy import Policy

__all__ = ["build_candidate"]


def _find(report: dict[str, object], name: str) -> Candidate:
    """A candidate by its name, or by the name of a pick."""
    entries = report["candidates"]
    assert isinstance(entries, list)
    picks = report.get("picks")
    for pick in picks if isinstance(picks, list) else []:
        if pick["name"] == name:
            name = pick["candidate"]
    for entry in entries:
        if entry["name"] == name:
            return Candidate.from_json(entry)
    names = [entry["name"] for entry in entries]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    raise UserError(f"candidate '{name}' is not in the run; near names: {', '.join(near)}")


def _refuse_code(folder: Path, data: DataOptions) -> None:
    """Raise UserError where opening the run's data would run code that the folder names, or download it."""
    for spec in (data.calibration or data.evaluation, data.preprocess):
        if spec and runs_code(spec):
            raise UserError(
                f"{folder}: rebuilding this candidate rounds on the data '{spec}' that the run folder names, "
                "which runs or downloads what its writer chose; if you trust that, give `trust`"
            )


def build_candidate(
    run: str | Path, name: str, model: str | None = None, *, trust: bool = False
) -> tuple[Model, Candidate]:
    """The model of a candidate, checked against the hash that was measured.

    A run folder is data: none of its code is run, unless `trust` allows the `module:callable` or the download
    (`hf:`) that the run's data came from, which rounding on data needs again.

    model: where the original lies now, if not where it was. Raises UserError for an unknown name,
    ResumeError when the original model is no longer the one that was tuned.
    """
    folder = Path(run)
    report = load_report(folder)
    candidate = _find(report, name)
    journal = read_journal(folder)
    if journal is None:
        raise ResumeError(f"{folder}: holds no journal, so no candidate can be rebuilt")
    settings = dict(report["config"])
    if model is not None:
        settings["model"] = model
    config = TuneConfig.from_json(settings)
    prepared, _ = prepare_model(config.model, config.scheme_options, Context())
    if model_hash(prepared) != journal.fingerprint.get("model"):
        raise ResumeError(
            f"{settings['model']}: is not the model that {folder} was tuned from; give that one with `model`"
        )
    ranges = recorded_ranges(journal.kinds.get("ranges", {}))
    if candidate.mode == "float":
        result = prepared
    else:
        # Rounding looks at the calibration set again; what the journal holds is enough otherwise.
        rounding = config.rounding_options
        if rounding.sees_data and not trust:
            _refuse_code(folder, config.data_options)
        data = open_data(config.data_options, prepared)[1] if rounding.sees_data else None
        rounder = None if data is None else make_rounder(rounding, data)
        policy = Policy.from_json(candidate.policy)
        result = build_model(prepared, policy, ranges, rounder, rounding.method)
    check(result)
    if (
        candidate.sha256
        and not is_large(result.proto)
        and sha256_bytes(serialize(result)) != candidate.sha256
    ):
        raise ResumeError(
            f"{folder}: candidate {name} cannot be rebuilt exactly; was onnxq or onnx updated since?"
        )
    return result, candidate
