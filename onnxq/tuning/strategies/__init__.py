"""The strategies of `tune`: one file each, found in one table.

Each is a generator of proposals; it may look at what was measured before it goes on, and everything expensive
that it does is in the journal, so that a resumed run takes the same way.
"""

from __future__ import annotations

from onnxq.tuning.strategies.base import SpendsBits, Strategy
from onnxq.tuning.strategies.registry import (
    STRATEGIES,
    check_strategy,
    known_strategies,
    open_strategy,
    readers_of,
    reads,
    strategy_name,
    strategy_text,
)
from onnxq.tuning.strategies.search import Goal, Search

__all__ = [
    "STRATEGIES",
    "Goal",
    "Search",
    "SpendsBits",
    "Strategy",
    "check_strategy",
    "known_strategies",
    "open_strategy",
    "readers_of",
    "reads",
    "strategy_name",
    "strategy_text",
]
