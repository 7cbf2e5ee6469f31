// Single codes of a stream, and how far vectors of them may go.
#pragma once

#include "kernel_types.h"

namespace onnxq {
namespace {

// Code `index` of a stream, one or two bytes; never reads a byte that holds none of its bits.
inline unsigned raw_code(const uint8_t* stream, uint64_t index, int bits) {
  const uint64_t bit = index * static_cast<unsigned>(bits);
  const unsigned offset = static_cast<unsigned>(bit & 7);
  const uint8_t* byte = stream + (bit >> 3);
  unsigned word = byte[0];
  if (offset + static_cast<unsigned>(bits) > 8) word |= static_cast<unsigned>(byte[1]) << 8;
  return (word >> offset) & ((1u << bits) - 1);
}

inline int signed_code(const uint8_t* stream, uint64_t index, int bits) {
  const int code = static_cast<int>(raw_code(stream, index, bits));
  const int sign = 1 << (bits - 1);
  return (code ^ sign) - sign;
}

// Highest index at which a whole vector may be read and written, plus one; 0 where there is none.
template <class V>
uint64_t vector_limit(size_t stream_bytes, int bits, uint64_t count) {
  if (stream_bytes < V::kLoadBytes || count < V::kWidth) return 0;
  const uint64_t by_output = count - V::kWidth + 1;
  const uint64_t by_input = ((stream_bytes - V::kLoadBytes) * 8 + 7) / static_cast<unsigned>(bits) + 1;
  return by_output < by_input ? by_output : by_input;
}

}  // namespace
}  // namespace onnxq
