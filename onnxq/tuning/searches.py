"""What a run's strategy works with, mode by mode: the search space and the layers' errors, once asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.allocation.problem import Problem
from onnxq.report import ReportWriter
from onnxq.search.candidate import Candidate
from onnxq.search.journal import Journal
from onnxq.search.layer_errors import LayerErrors
from onnxq.search.ranking import rank
from onnxq.tuning.allocate import open_space
from onnxq.tuning.file_size import file_bytes
from onnxq.tuning.layer_ranking import ranked_errors, searched_layers
from onnxq.tuning.measure import Measurer
from onnxq.tuning.outcome import Event
from onnxq.tuning.pictures import draw_sensitivity
from onnxq.tuning.space import Space
from onnxq.tuning.strategies import Search

__all__ = ["Searches"]

# Of a time budget, what sensitivities may take.
_SENSITIVITY_SHARE = 0.35


@dataclass
class Searches:
    """Makes the Search of every mode.

    Attributes:
        measured: gives the candidates of the run so far.
        note: says in the report what was left out.
        float_bytes: of the float file.
        errors: by mode, of the layers, where the strategy looked at them.
    """

    folder: Path
    journal: Journal
    measurer: Measurer
    writer: ReportWriter
    measured: Callable[[], Sequence[Candidate]]
    emit: Callable[[Event], None]
    note: Callable[[str], None]
    deadline: float | None
    float_bytes: int
    errors: dict[str, list[LayerErrors]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Search]:
        """One search a mode; nothing is measured before the strategy looks at it."""
        config, model = self.measurer.prepared.config, self.measurer.prepared.model
        ladders = config.scheme_options.ladders
        for position, (mode, ladder) in enumerate(ladders.items()):
            yield Search(
                mode,
                config.search_options.goal,
                ladder,
                self.measurer.metric,
                self.measured,
                functools.partial(file_bytes, model),
                functools.partial(self._space, mode, _SENSITIVITY_SHARE / (len(ladders) - position)),
                searched_layers(self.measurer.prepared),
                functools.partial(self._ranked, mode),
                self.deadline,
            )

    def _space(self, mode: str, share: float) -> tuple[Problem, Space]:
        """The sensitivities of a mode, measured, drawn and written down. share: of the time that is left."""
        prepared = self.measurer.prepared
        names = set(searched_layers(prepared))
        problem, space = open_space(
            self.measurer,
            [layer for layer in prepared.layers if layer.name in names],
            mode,
            self.folder,
            self.journal,
            lambda what, done, total: self.emit(Event("rank", done, total, what)),
            float_bytes=self.float_bytes,
            deadline=self.deadline,
            share=share,
        )
        self.writer.embed(*draw_sensitivity(self.folder, mode))
        if space.estimated:
            self.note(
                f"{mode}: the time budget was too short for {space.estimated} sensitivities; "
                "they were estimated"
            )
        return problem, space

    def _ranked(self, mode: str) -> list[str]:
        """The layers of the search, the one with the largest error in a mode first."""
        self.errors[mode] = ranked_errors(mode, self.measurer, self.journal, self.emit)
        ranked = rank(self.errors[mode])
        return ranked + [n for n in searched_layers(self.measurer.prepared) if n not in set(ranked)]
