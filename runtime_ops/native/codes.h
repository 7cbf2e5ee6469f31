// Decoding packed weights to int8 codes instead of floats. runtime_ops/codes.py is the reference; every instruction
// set gives the same codes. Levels of trellises: trellis.h.
#pragma once

#include "decode.h"

namespace onnxq {

// Where rows of codes go: `codes` has room for `count` of them, `fits` (and `scale`) for `rows` numbers. fits: 1 for a
// row whose values are exactly its codes times its scale; any other row is 0, and its codes are zeros.
struct CodeRows {
  int8_t* codes;
  size_t count;
  uint8_t* fits;
  size_t rows;
};

// The mantissas of a row, shifted to the least exponent among its groups that are not all zero. scale: 2 to that
// exponent, NaN for a row that does not fit.
Status decode_codes(const GseWeight& weight, const CodeRows& out, float* scale, int isa);

// Code less zero point; the scales stay where they are, and weight.scale is not read.
Status decode_codes(const AffineWeight& weight, const CodeRows& out, int isa);

}  // namespace onnxq
