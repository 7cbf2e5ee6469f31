"""Rounding that looks at the data: replay of calibration images, moments of layer inputs, the rounder."""

from onnxq.rounding.rounder import DataRounder, parse_damping

__all__ = ["DataRounder", "parse_damping"]
