// Trellises: the best path through the states, and the values of a stream. runtime_ops/trellis.py is the reference.
#pragma once

#include "decode.h"
#include "kernel_types.h"

namespace onnxq {

// path: chain.count windows of least weighted squared error. end: a window whose successors the last one must
// keep, or -1. Takes count * (kStates >> bits) floats of memory. Every instruction set finds the same path.
Status trellis_path(const Chain& chain, int end, uint16_t* path, int isa);

// A weight of `rows` channels and `columns` weights each, whose chain runs down the columns.
struct TrellisWeight {
  const uint8_t* packed;
  size_t packed_bytes;
  const int8_t* levels;  // kStates of them
  int bits;
  int64_t rows;
  int64_t columns;
};

// out: [rows, columns], the levels times the scale of their row, or the levels themselves. Nothing beyond the stated
// lengths is read or written.
Status decode(const TrellisWeight& weight, const float* scale, float* out, size_t out_count, int isa);
Status decode_codes(const TrellisWeight& weight, int8_t* out, size_t out_count, int isa);

}  // namespace onnxq
