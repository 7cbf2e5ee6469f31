"""Graph passes over ONNX models, and the policy that they obey."""

from __future__ import annotations

from passes.core.base import (
    Context,
    GraphPass,
    Note,
    Pass,
    PassResult,
    RangeProvider,
    Sequential,
    pass_names,
    register,
)
from passes.core.errors import UserError
from passes.core.recipe import format_pass, load_recipe, parse_recipe
from passes.decode import Decode
from passes.equalize import Equalize
from passes.exclude import Exclude, exclude
from passes.fold_batchnorm import FoldBatchNorm
from passes.graph.layers import Layer, find_layers, macs
from passes.graph.model import Model, check, load, save
from passes.graph.select import select_layers
from passes.inline_functions import InlineFunctions
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme, load_policy
from passes.preparation import preparation
from passes.quantize import Quantize
from passes.simplify import Simplify
from passes.smooth import Smooth

__all__ = [
    "FLOAT",
    "Context",
    "Decode",
    "Equalize",
    "Exclude",
    "FoldBatchNorm",
    "GraphPass",
    "InlineFunctions",
    "Layer",
    "LayerPolicy",
    "Model",
    "Note",
    "Pass",
    "PassResult",
    "Policy",
    "Quantize",
    "RangeProvider",
    "Scheme",
    "Sequential",
    "Simplify",
    "Smooth",
    "UserError",
    "check",
    "exclude",
    "find_layers",
    "format_pass",
    "load",
    "load_policy",
    "load_recipe",
    "macs",
    "parse_recipe",
    "pass_names",
    "preparation",
    "register",
    "save",
    "select_layers",
]
