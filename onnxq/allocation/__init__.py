"""Ways to spend bits: one search space, from a table of sensitivities to assignments of choices to layers."""

from __future__ import annotations

from onnxq.allocation.ilp import ilp, ilp_front
from onnxq.allocation.nsga2 import evolve
from onnxq.allocation.problem import Problem
from onnxq.allocation.resources import CostModel, LayerCosts, Resource, read_costs
from onnxq.allocation.shapley import ShapleyState, Walk, play, value_problem, walks
from onnxq.allocation.threshold import threshold, threshold_front

__all__ = [
    "CostModel",
    "LayerCosts",
    "Problem",
    "Resource",
    "ShapleyState",
    "Walk",
    "evolve",
    "ilp",
    "ilp_front",
    "play",
    "read_costs",
    "threshold",
    "threshold_front",
    "value_problem",
    "walks",
]
