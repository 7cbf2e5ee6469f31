"""What each layer costs in each scheme, measured once and kept."""

from __future__ import annotations

from onnxq.sensitivity.engine import Settings, measure_sensitivities
from onnxq.sensitivity.statistics import Sensitivity
from onnxq.sensitivity.variants import Variant, choice_text, parse_choice

__all__ = ["Sensitivity", "Settings", "Variant", "choice_text", "measure_sensitivities", "parse_choice"]
