"""`ranking`: TuneQn's selective quantization, one more layer per step (onnxq/search/ranking.py)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from onnxq.search.ranking import Proposal, ranking_proposals
from onnxq.tuning.strategies.base import Strategy
from onnxq.tuning.strategies.search import Goal, Search

__all__ = ["Ranking"]


@dataclass(frozen=True)
class Ranking(Strategy):
    """From fully quantized to float, the layer with the largest error first."""

    name: ClassVar[str] = "ranking"
    help: ClassVar[str] = "Layers by their errors; each step moves one more layer up to the next scheme."
    caption: ClassVar[str] = "Each step moves one more layer, by its error, to the next scheme."
    ahead: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("ranking_samples",)

    def proposals(self, search: Search) -> Iterable[Proposal]:
        return ranking_proposals(search.mode, search.ladder, search.order)

    def most(self, layers: int, schemes: int, goal: Goal) -> int:  # noqa: ARG002
        return layers * schemes
