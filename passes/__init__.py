"""Graph passes over ONNX models, and the policy that they obey."""

from __future__ import annotations

from passes.base import (
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
from passes.decoding import Decode
from passes.equalize import Equalize
from passes.errors import UserError
from passes.exclude import Exclude, exclude
from passes.fold_batchnorm import FoldBatchNorm
from passes.inline_functions import InlineFunctions
from passes.layers import Layer, find_layers, macs
from passes.model import Model, check, load, save
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme, load_policy
from passes.preparation import preparation
from passes.quantize import Quantize
from passes.recipe import format_pass, load_recipe, parse_recipe
from passes.select import select_layers
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
