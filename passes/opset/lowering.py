"""Bring a model down to an older opset, where every node means the same there.

Legal for a node if its operator did not change in between, or if the node uses nothing that was added: no
new input or output, no new type, and new attributes only with their default value. What `adapters` would
have to undo is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import defs

from passes.opset.adapters import ADAPTERS
from passes.opset.conversion import Walk
from passes.opset.schemas import STANDARD, drop_defaults, is_operator, lost, transitions
from passes.opset.site import RefusedError, Scope

__all__ = ["Descent"]


@dataclass
class Descent(Walk):
    """Converts the nodes of one model down to opset `target`."""

    def node(
        self, node: onnx.NodeProto, level: int, scope: Scope
    ) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
        if node.domain in STANDARD:
            if not is_operator(node.op_type, self.target):
                raise RefusedError(f"opset {self.target} does not have it")
            for older, newer in reversed(transitions(node.op_type, self.target, level)):
                self._step(node, older, newer, scope)
        return [], []

    def _step(self, node: onnx.NodeProto, older: defs.OpSchema, newer: defs.OpSchema, scope: Scope) -> None:
        version = newer.since_version
        drop_defaults(node, newer, older)
        reason = lost(node, newer, older, scope.element)
        if reason or (node.op_type, version) in ADAPTERS:
            raise RefusedError(f"{reason or 'it changed its meaning'}, which needs opset {version}")
