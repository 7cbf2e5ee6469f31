"""Opset upgrades: own adapters over onnx's schemas, each upgrade noted, each refusal by the node's name.

What is ours and what is onnx's:

1. onnx's schemas say which operator changed at which opset (`schemas`). Its version converter is not used: it
   loses metadata, repeats names and changes values (onnx/onnx#8480). Nodes are edited in the file's own graph
   (`conversion`), so that names, doc strings, metadata and declared shapes stay as they are.
2. A change that only adds something (optional inputs, attributes, types) needs no work. Any other change
   has one function and one line in the table of `adapters`; without an entry it is refused with the name of
   the node.
3. An operator at its old opset means what ONNX Runtime computes for it there, whatever onnx's adapters
   assume: `benchmarks/opset_sweep.py` compares every operator that changed, `tests/passes/test_opset.py`
   some of them.
4. A model newer than the Q/DQ kernels of the installed ONNX Runtime is brought down if its nodes mean the
   same at the older opset (`lowering`). ONNX Runtime is asked for its limit and its kernels (`runtime`).
5. A function of the model is converted like a graph and then imports the new opset. If one of its nodes
   cannot be converted without types, all functions are inlined first.
"""

from passes.opset.upgrading import upgrade

__all__ = ["upgrade"]
