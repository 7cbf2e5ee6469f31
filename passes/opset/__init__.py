"""Opset upgrades, told and never silent.

What is ours and what is onnx's:

1. onnx's schemas say which operator changed at which opset (`schemas`). Its version converter is not used: it loses
   metadata, repeats names, and changes values (onnx/onnx#8480). The nodes of the file are edited where they are
   (`conversion`), so that everything that is not said here stays: names, doc strings, metadata, declared shapes.
2. A change that only adds (optional inputs, attributes, types) needs nothing. Any other change has one function and one
   line in the table of `adapters`; a change without either is refused with the name of the node.
3. What an operator meant at its old opset is what ONNX Runtime computes for it there, not what the adapter of onnx
   assumes: `benchmarks/opset_sweep.py` compares every changed operator, `tests/passes/test_opset.py` a part of them.
4. A model newer than the Q/DQ kernels of the installed ONNX Runtime is brought down where its nodes mean the same at the
   older opset (`lowering`); ONNX Runtime is asked for its limit (`runtime`).
5. A function of the model whose nodes mean the same at the new opset is kept and imports it; one whose nodes change is
   edited like a graph where that needs no types, else it is inlined.
"""

from passes.opset.upgrading import upgrade

__all__ = ["upgrade"]
