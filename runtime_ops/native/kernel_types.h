// What the kernels of all instruction sets have in common; plain data and constants only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace onnxq {

inline constexpr int kMinTrellisBits = 2;
inline constexpr int kMaxTrellisBits = 5;
inline constexpr int kWindow = 12;
inline constexpr size_t kStates = size_t{1} << kWindow;
inline constexpr size_t kTileRows = 64, kTileColumns = 64;

// A code of at most 8 bits that starts at any bit lies in two neighbouring bytes. For lane i of a vector whose
// first code starts at bit `remainder` of its first byte, `bytes` names those two as the upper half of a 32-bit
// lane (the lower half is zero), and a 16-bit multiplication by `factor` shifts the code's sign to the top: x86
// has more units for it than for shifts that differ by lane. The second byte may lie beyond the loaded ones only
// if the code has no bit in it; it then wraps around and is shifted out.
struct alignas(64) Lanes {
  uint8_t bytes[64];
  int32_t factor[16];
  unsigned bits, remainder;  // for the scalar kernel
};

struct Table {
  Lanes lanes[8];  // by remainder
};

constexpr Table make_table(int bits) {
  Table table{};
  for (int remainder = 0; remainder < 8; ++remainder) {
    table.lanes[remainder].bits = static_cast<unsigned>(bits);
    table.lanes[remainder].remainder = static_cast<unsigned>(remainder);
    for (int lane = 0; lane < 16; ++lane) {
      const int bit = remainder + lane * bits;
      uint8_t* bytes = table.lanes[remainder].bytes + 4 * lane;
      bytes[0] = bytes[1] = 0x80;  // a byte shuffle gives zero for it
      bytes[2] = static_cast<uint8_t>(bit / 8 % 16);
      bytes[3] = static_cast<uint8_t>((bit / 8 + 1) % 16);
      table.lanes[remainder].factor[lane] = 1 << (16 + 16 - bit % 8 - bits);
    }
  }
  return table;
}

// The same for the windows of a trellis: `bytes` brings the three bytes that a window lies in to the top of its lane,
// the first of them highest, and `factor` is how far it is to be shifted up there.
constexpr Table make_window_table(int bits) {
  Table table = make_table(bits);
  for (int remainder = 0; remainder < 8; ++remainder) {
    for (int lane = 0; lane < 16; ++lane) {
      const int bit = remainder + lane * bits;
      uint8_t* bytes = table.lanes[remainder].bytes + 4 * lane;
      bytes[0] = 0x80;
      for (int i = 1; i < 4; ++i) bytes[i] = static_cast<uint8_t>(bit / 8 + 3 - i);
      table.lanes[remainder].factor[lane] = bit % 8;
    }
  }
  return table;
}

extern const Table kTables[kMaxBits - kMinBits + 1];

inline const Table& table_of(int bits) { return kTables[bits - kMinBits]; }

extern const Table kWindowTables[kMaxTrellisBits - kMinTrellisBits + 1];

inline const Table& window_table_of(int bits) { return kWindowTables[bits - kMinTrellisBits]; }

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

// A row of codes of `bits` bits, one byte each.
struct CodeRow {
  int8_t* codes;
  uint64_t size;
  uint64_t group_size;
  int bits;
};

// How a code m becomes a value. (m - zero point) * scale is exact in float32 (8 bits times a float16's 11), and so
// is m * scale - zero point * scale, which is one instruction. The two differ in the sign of zero, and only where a
// scale is not positive.
enum class Form {
  kScaled,   // m * scale
  kShifted,  // (m - zero) * scale
  kFused,    // m * scale - zero, where zero = zero point * scale
};

// A stretch of a trellis (runtime_ops/trellis.py): kWindow bits a state, `bits` new ones a value.
struct Chain {
  const float* values;
  const float* weights;
  size_t count;
  const float* levels;  // kStates of them
  int bits;
  int start;  // the window before the first value, or -1
};

// A weight whose values are the levels of the windows of a stream, column after column.
struct TrellisStream {
  const uint8_t* data;
  size_t bytes;
  int bits;
  size_t rows, columns;
  const int8_t* levels;  // kStates of them
};

struct Kernel {
  // 2^(base + code) of the exponent codes [first, first + count); `first` is a multiple of 8.
  void (*fill_powers)(const uint8_t* exponents, size_t bytes, uint64_t first, size_t count, int base, float* out);
  // Scales, and zeros for kFused if all scales are positive, else for kShifted. False where a scale is not finite.
  bool (*fill_affine)(const uint16_t* scale, const int8_t* zero_point, size_t count, float* scales, float* zeros,
                      Form* form);
  // Groups [first, first + count), whose scales and zeros begin at scales[0] and zeros[0].
  void (*decode)(Form form, const Stream& stream, uint64_t first, size_t count, const float* scales,
                 const float* zeros);
  // `count` codes as int8.
  void (*unpack)(const uint8_t* data, size_t bytes, int bits, uint64_t count, int8_t* out);
  // A row of such codes becomes its codes less the zero points of its groups. False, and a row of no use, where one of
  // them leaves int8.
  bool (*affine_row)(const CodeRow& row, const int8_t* zero_point);
  // The same for mantissas, shifted to the least of the exponent codes [first, ...) of groups that are not all zero.
  bool (*gse_row)(const CodeRow& row, const uint8_t* exponents, uint64_t first, int* lowest);
  // Viterbi's forward pass. least: [count, kStates >> bits], the smallest cost of what lies before a value by the
  // upper bits of its window, less the smallest of all; costs: [kStates], of the last value.
  void (*trellis)(const Chain& chain, float* least, float* costs);
  // Into [rows, columns]: the levels times their row's scale, and the levels themselves.
  void (*trellis_values)(const TrellisStream& stream, const float* scale, float* out);
  void (*trellis_codes)(const TrellisStream& stream, int8_t* out);
};

// Null where this build has not got the instruction set.
const Kernel* scalar_kernel();
const Kernel* avx2_kernel();
const Kernel* avx512_kernel();
const Kernel* neon_kernel();

}  // namespace onnxq
