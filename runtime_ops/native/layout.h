// What a packed weight occupies, and everything that can be wrong with one.
//
// A weight is R rows of K values, rows are cut into groups of G (the last one of a row may be short), and the
// values are signed codes of `bits` bits in one little-endian bit stream: code i is bits [i*bits, (i+1)*bits),
// bit j of the stream is bit j % 8 of byte j / 8. runtime_ops/gse.py is the reference.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

inline constexpr int kMinBits = 2;
inline constexpr int kMaxBits = 8;
inline constexpr int kExponentBits = 5;
inline constexpr int kTopExponent = (1 << kExponentBits) - 1;

enum Status : int {
  kOk = 0,
  kBadBits,
  kBadGroupSize,
  kBadShape,
  kTooLarge,
  kPackedTooShort,
  kExponentsTooShort,
  kScalesTooShort,
  kBadExponentBase,
  kBadScale,
  kOutputTooShort,
  kBadIsa,
  kNullPointer,
  kBadTrellisBits,
  kNoMemory,
  kRowsTooShort,
  kStatusCount,
};

// One sentence; an unknown code has one too.
const char* status_text(int status);

struct Layout {
  int bits = 0;
  uint64_t row_size = 0;
  uint64_t group_size = 0;      // at most row_size
  uint64_t values = 0;          // rows * row_size
  uint64_t groups = 0;          // rows * ceil(row_size / group_size)
  uint64_t packed_bytes = 0;    // of the codes
  uint64_t exponent_bytes = 0;  // of the 5-bit exponent codes
};

// Fills `layout` if the numbers describe a weight whose bits and whose float bytes can be counted in size_t.
Status make_layout(int64_t bits, int64_t rows, int64_t row_size, int64_t group_size, Layout* layout);

// The same from a tensor's shape: rows = shape[0], row_size = the product of the rest.
Status make_layout(int64_t bits, const int64_t* shape, size_t rank, int64_t group_size, Layout* layout);

// Whether the codes are all there, and the output has room for what they become.
Status check_buffers(const Layout& layout, const uint8_t* packed, size_t packed_bytes, const void* out,
                     size_t out_count);

// Scales stay normal floats and no value overflows: -126 <= base <= 97 - bits.
Status check_exponent_base(int64_t base, int bits);

}  // namespace onnxq
