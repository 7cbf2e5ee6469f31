// Encoding for a trellis: the best path through its states. runtime_ops/trellis.py is the reference.
#pragma once

#include "decode.h"
#include "kernel_types.h"

namespace onnxq {

// path: chain.count windows of least weighted squared error. end: a window whose successors the last one must
// keep, or -1. Takes count * (kStates >> bits) floats of memory. Every instruction set finds the same path.
Status trellis_path(const Chain& chain, int end, uint16_t* path, int isa);

}  // namespace onnxq
