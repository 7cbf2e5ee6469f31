// What the kernels of all instruction sets have in common; plain data and constants only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace onnxq {

// A code of at most 8 bits that starts at any bit lies in two neighbouring bytes. For lane i of a vector whose
// first code starts at bit `remainder` of its first byte, `bytes` names those two as the upper half of a 32-bit
// lane (the lower half is zero), and a left shift by `shift` brings the code's sign to the top. The second byte
// may lie beyond the loaded ones only if the code has no bit in it; it then wraps around and is shifted out.
struct alignas(64) Lanes {
  uint8_t bytes[64];
  int32_t shift[16];
};

struct Table {
  Lanes lanes[8];  // by remainder
};

constexpr Table make_table(int bits) {
  Table table{};
  for (int remainder = 0; remainder < 8; ++remainder) {
    for (int lane = 0; lane < 16; ++lane) {
      const int bit = remainder + lane * bits;
      uint8_t* bytes = table.lanes[remainder].bytes + 4 * lane;
      bytes[0] = bytes[1] = 0x80;  // a byte shuffle gives zero for it
      bytes[2] = static_cast<uint8_t>(bit / 8 % 16);
      bytes[3] = static_cast<uint8_t>((bit / 8 + 1) % 16);
      table.lanes[remainder].shift[lane] = 16 - bit % 8 - bits;
    }
  }
  return table;
}

extern const Table kTables[kMaxBits - kMinBits + 1];

inline const Table& table_of(int bits) { return kTables[bits - kMinBits]; }

// A weight's codes, and where its values go.
struct Stream {
  const uint8_t* data;
  size_t bytes;
  int bits;
  uint64_t row_size;
  uint64_t group_size;
  uint64_t values;
  float* out;
};

struct Kernel {
  // 2^(base + code) of the exponent codes [first, first + count); `first` is a multiple of 8.
  void (*fill_powers)(const uint8_t* exponents, size_t bytes, uint64_t first, size_t count, int base,
                      float* out);
  void (*fill_halves)(const uint16_t* scale, const int8_t* zero_point, size_t count, float* scales,
                      float* zeros);
  void (*gse)(const Stream&, uint64_t first, size_t count, const float* scales, const float* zeros);
  void (*affine)(const Stream&, uint64_t first, size_t count, const float* scales, const float* zeros);
};

// Null where this build has not got the instruction set.
const Kernel* scalar_kernel();
const Kernel* avx2_kernel();
const Kernel* avx512_kernel();
const Kernel* neon_kernel();

}  // namespace onnxq
