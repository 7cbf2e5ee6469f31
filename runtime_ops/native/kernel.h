// One kernel, compiled once for each instruction set (kernel_*.cc). A vector type V describes the set:
//
//   V::kWidth                    values decoded at a time, a multiple of 8, so whole bytes lie between vectors
//   V::kLoadBytes                bytes that V::codes reads from its address on
//   V::Plan                      where the codes of one vector lie, for bits and the bit of the first byte that
//                                code 0 starts at; V::plan(table, remainder) loads it
//   V::Codes                     codes of a vector; V::codes(address, plan) has them in the top bits
//   V::store_signed<Affine>(...) sign-extends, converts, subtracts the zero point, scales, stores
//   V::store_powers(...)         5-bit exponent codes to powers of two; V::store_halves: float16 to float32
//
// Everything stands in an unnamed namespace and uses no inline function of the standard library: the linker
// must never take a copy that was compiled for AVX-512 for a processor that has none.
#pragma once

#include <string.h>

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

inline float signed_code(const uint8_t* stream, uint64_t index, int bits) {
  const int code = static_cast<int>(raw_code(stream, index, bits));
  const int sign = 1 << (bits - 1);
  return static_cast<float>((code ^ sign) - sign);
}

inline float power_of_two(int exponent) {
  const uint32_t pattern = static_cast<uint32_t>(exponent + 127) << 23;
  float value;
  memcpy(&value, &pattern, sizeof value);
  return value;
}

// Exact for every finite float16, whatever the processor does with denormal numbers.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t fraction = half & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t pattern = sign | ((exponent + 112) << 23) | (fraction << 13);
  float value;
  memcpy(&value, &pattern, sizeof value);
  return value;
}

// Highest index at which a whole vector may be read and written, plus one; 0 where there is none.
template <class V>
uint64_t vector_limit(size_t stream_bytes, int bits, uint64_t count) {
  if (stream_bytes < V::kLoadBytes || count < V::kWidth) return 0;
  const uint64_t by_output = count - V::kWidth + 1;
  const uint64_t by_input = ((stream_bytes - V::kLoadBytes) * 8 + 7) / static_cast<unsigned>(bits) + 1;
  return by_output < by_input ? by_output : by_input;
}

template <class V>
void fill_powers(const uint8_t* exponents, size_t bytes, uint64_t first, size_t count, int base, float* out) {
  const Table& table = table_of(kExponentBits);
  uint64_t limit = vector_limit<V>(bytes, kExponentBits, first + count);
  size_t i = 0;
  const auto plan = V::plan(table, 0);  // `first` is a multiple of 8
  for (; first + i < limit; i += V::kWidth) {
    V::store_powers(out + i, V::codes(exponents + (first + i) / 8 * kExponentBits, plan), base);
  }
  for (; i < count; ++i) {
    out[i] = power_of_two(base + static_cast<int>(raw_code(exponents, first + i, kExponentBits)));
  }
}

template <class V>
void fill_halves(const uint16_t* scale, const int8_t* zero_point, size_t count, float* scales, float* zeros) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) V::store_halves(scales + i, scale + i);
  for (; i < count; ++i) scales[i] = half_to_float(scale[i]);
  for (i = 0; i < count; ++i) zeros[i] = static_cast<float>(zero_point[i]);
}

// Groups [first, first + count) of a weight, whose scales (and zero points) are given. Groups are written in
// order and in whole vectors: what a vector writes beyond its group, the next groups write over.
template <class V, bool kAffine>
void decode_groups(const Stream& stream, uint64_t first, size_t count, const float* scales, const float* zeros) {
  const int bits = stream.bits;
  const Table& table = table_of(bits);
  const uint64_t limit = vector_limit<V>(stream.bytes, bits, stream.values);
  const size_t step = V::kWidth / 8 * static_cast<unsigned>(bits);
  const uint64_t per_row = (stream.row_size + stream.group_size - 1) / stream.group_size;
  uint64_t column = first % per_row * stream.group_size;
  uint64_t value = first / per_row * stream.row_size + column;
  const auto width = V::width(bits);
  for (size_t group = 0; group < count; ++group) {
    const uint64_t left = stream.row_size - column;
    const uint64_t length = left < stream.group_size ? left : stream.group_size;
    const uint64_t end = value + length;
    const uint64_t bit = value * static_cast<unsigned>(bits);
    const uint8_t* source = stream.data + (bit >> 3);
    const auto plan = V::plan(table, static_cast<unsigned>(bit & 7));
    const auto scale = V::broadcast(scales[group]);
    const auto zero = V::broadcast(kAffine ? zeros[group] : 0.0f);
    const uint64_t stop = end < limit ? end : limit;
    uint64_t i = value;
    for (; i < stop; i += V::kWidth, source += step) {
      V::template store_signed<kAffine>(stream.out + i, V::codes(source, plan), width, scale, zero);
    }
    for (; i < end; ++i) {  // the last values of the weight
      float code = signed_code(stream.data, i, bits);
      if (kAffine) code = code - zeros[group];
      stream.out[i] = code * scales[group];
    }
    value = end;
    column = left == length ? 0 : column + length;
  }
}

template <class V>
constexpr Kernel kernel_of() {
  return {fill_powers<V>, fill_halves<V>, decode_groups<V, false>, decode_groups<V, true>};
}

}  // namespace
}  // namespace onnxq
