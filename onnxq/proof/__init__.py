"""The proof before saving: what is written does what the model that it came from does."""

from __future__ import annotations

from onnxq.proof.feeds import made_up_feed
from onnxq.proof.prove import Proof, Reference
from onnxq.proof.saving import save, write_model

__all__ = ["Proof", "Reference", "made_up_feed", "save", "write_model"]
