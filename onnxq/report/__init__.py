"""The report of a run: JSON, one HTML page, three figures; and several runs side by side."""

from __future__ import annotations

from onnxq.report.compare import compare, write_comparison
from onnxq.report.contents import LayerError, environment, make_report
from onnxq.report.report import ReportWriter, load_report, write_report

__all__ = [
    "LayerError",
    "ReportWriter",
    "compare",
    "environment",
    "load_report",
    "make_report",
    "write_comparison",
    "write_report",
]
