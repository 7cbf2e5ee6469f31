"""The files of a run's front: front/NAME.onnx, and the recipe that makes it from the original model."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

from onnxq.files import atomic_write
from onnxq.search.candidate import Candidate
from onnxq.tuning.config import MODES
from onnxq.tuning.measure import Measurer
from onnxq.tuning.prepare import base_recipe
from passes.core.recipe import format_pass
from passes.graph.model import save
from passes.policy import Policy
from passes.quantize import Quantize

__all__ = ["FrontFiles"]

_OURS = re.compile(rf"((?:{'|'.join(MODES)})-\d{{3,}})\.(?:onnx|onnx\.data|recipe)")


class FrontFiles:
    """folder: `front` in a run's folder; it may hold files of others, which are left alone."""

    def __init__(self, folder: Path, measurer: Measurer) -> None:
        self._folder, self._measurer = folder, measurer
        self._saved: set[str] = set()

    def save(self, member: Candidate) -> Path:
        """The member's model, written unless this process has written it before."""
        path = self._folder / f"{member.name}.onnx"
        if member.name in self._saved and path.exists():
            return path
        policy = Policy.from_json(member.policy)
        save(self._measurer.build(member.key, policy), path)
        config = self._measurer.prepared.config
        step = dataclasses.replace(Quantize.of(policy), rounding=config.rounding_options.method)
        recipe = base_recipe(config.scheme_options) | step
        atomic_write(path.with_suffix(".recipe"), format_pass(recipe).replace(" | ", "\n") + "\n")
        self._saved.add(member.name)
        return path

    def clean(self, keep: set[str]) -> None:
        """Remove what candidates that left the front, killed processes and older runs have left."""
        for path in self._folder.glob("*"):
            if path.is_dir() and path.name.startswith(".onnxq-"):
                shutil.rmtree(path, ignore_errors=True)
            name = _OURS.fullmatch(path.name)
            if name is not None and name[1] not in keep:
                path.unlink(missing_ok=True)
        self._saved &= keep
