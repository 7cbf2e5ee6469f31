"""All sensitivities of a model in several schemes, kept in a folder that `onnxq allocate` reads."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq._version import __version__
from onnxq.allocation.problem import Problem
from onnxq.data import Dataset, materialise
from onnxq.files import atomic_write
from onnxq.search.journal import Journal
from onnxq.sensitivity.engine import Settings
from onnxq.sensitivity.statistics import Sensitivity
from onnxq.sensitivity.variants import Variant
from onnxq.tuning.measure import saved_bytes
from onnxq.tuning.prepare import model_hash
from onnxq.tuning.space import Space, write_space
from passes.errors import UnsupportedModelError
from passes.fold_batchnorm import FoldBatchNorm
from passes.layers import find_layers, macs
from passes.model import Model
from passes.policy import LayerPolicy
from passes.quantize import weight_scheme
from passes.simplify import Simplify

__all__ = ["SensitivityTable", "sensitivities"]

_MEMORY_FOR_DATA = 2**30


@dataclass(frozen=True)
class SensitivityTable:
    """problem: layers x schemes, ready for the allocators. entries: (layer, scheme) -> what was measured."""

    problem: Problem
    entries: dict[tuple[str, str], Sensitivity]

    def to_csv(self) -> str:
        """One line a layer and scheme."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["layer", "scheme", "mse", "stderr", "kl", "agreement", "sqnr", "samples", "bytes"])
        schemes = [str(choice.weights) for choice in self.problem.choices]
        for (layer, scheme), e in self.entries.items():
            size = self.problem.bytes[self.problem.layers.index(layer), schemes.index(scheme)]
            sqnr = "" if e.sqnr is None else f"{e.sqnr:.4g}"
            row = [f"{e.mse:.6g}", f"{e.stderr:.3g}", f"{e.kl:.6g}", f"{e.agreement:.4g}", sqnr, e.samples]
            writer.writerow([layer, scheme, *row, int(size)])
        return buffer.getvalue()


def sensitivities(
    model: Model,
    data: Dataset,
    schemes: Sequence[str],
    folder: str | Path | None = None,
    *,
    settings: Settings | None = None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> SensitivityTable:
    """S[layer, scheme] of every layer of `model` (BatchNorm is folded first), weights only.

    folder: keeps a journal, `sensitivity.csv` and `space-weights.json`; asked again with one more scheme,
    only that one is measured. Raises UserError for a scheme that makes no sense, for a model without layers,
    and for a folder that belongs to another model or other data.
    """
    settings = settings or Settings()
    choices = [LayerPolicy(weight_scheme(text)) for text in dict.fromkeys(schemes)]
    prepared = (Simplify() | FoldBatchNorm())(model).model
    layers = find_layers(prepared)
    if not layers:
        raise UnsupportedModelError(f"{model.name}: has no quantizable layer")
    fingerprint = {
        "model": model_hash(prepared),
        "data": data.fingerprint(),
        "onnxq version": __version__,
        "--seed": str(settings.seed),
        "--precision": f"{settings.precision:g}",
    }
    with tempfile.TemporaryDirectory(prefix="onnxq-") as temporary:
        home = Path(folder) if folder is not None else Path(temporary)
        with Journal(home, fingerprint) as journal:
            held = materialise(data, _MEMORY_FOR_DATA)
            space = Space(prepared, layers, held, journal, settings, progress=progress)
            problem = space.problem(choices, file_bytes=saved_bytes(prepared), macs=macs(prepared))
            entries = {
                (layer.name, str(choice.weights)): space.known(Variant.of(layer.name, choice))
                for layer in layers
                for choice in choices
                if not choice.is_float
            }
            table = SensitivityTable(problem, entries)
            write_space(home, "weights", model.name, problem)
            atomic_write(home / "sensitivity.csv", table.to_csv())
            return table
