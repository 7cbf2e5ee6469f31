// One kernel, compiled once for each instruction set (kernel_*.cc). A vector type V is the thin layer below it:
//
//   V::kWidth              values decoded at a time, a multiple of 8, so whole bytes lie between vectors
//   V::kLoadBytes          bytes that V::codes reads from its address on
//   V::Plan                where the codes of one vector lie; V::plan(lanes) loads it
//   V::codes(source, plan) the codes of a vector in the top bits of their lanes
//   V::windows(...)        the windows of a trellis (trellis_kernel.h), likewise
//   V::turn(...)           a block of 8 by 8 int8, rows to columns
//   V::shift(n)            what signed_right shifts by
//   broadcast, add, signed_right, right<n>, left<n>, converted, pattern (the same bits as floats), multiply,
//   subtract, multiply_subtract, load, store: one instruction each, or nearly, on kWidth int32 or float32
//
// Everything stands in an unnamed namespace and uses no inline function of the standard library: the linker
// must never take a copy that was compiled for AVX-512 for a processor that has none.
#pragma once

#include <string.h>

#include "codes_kernel.h"
#include "kernel_types.h"
#include "stream_codes.h"
#include "trellis_kernel.h"

namespace onnxq {
namespace {

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

template <Form kForm>
float formed(float code, float scale, float zero) {
  if (kForm == Form::kShifted) return (code - zero) * scale;
  return kForm == Form::kFused ? code * scale - zero : code * scale;
}

// The exponent codes in the top bits of the lanes as powers of two.
template <class V, class Codes, class Ints>
auto powers(Codes codes, Ints bias) {
  return V::pattern(V::template left<23>(V::add(V::template right<32 - kExponentBits>(codes), bias)));
}

// `shift`: V::shift(32 - bits).
template <class V, Form kForm, class Codes, class Shift, class Floats>
auto values_of(Codes codes, Shift shift, Floats scale, Floats zero) {
  const auto code = V::converted(V::signed_right(codes, shift));
  if constexpr (kForm == Form::kFused) {
    return V::multiply_subtract(code, scale, zero);
  } else if constexpr (kForm == Form::kShifted) {
    return V::multiply(V::subtract(code, zero), scale);
  } else {
    return V::multiply(code, scale);
  }
}

template <class V>
void fill_powers(const uint8_t* exponents, size_t bytes, uint64_t first, size_t count, int base, float* out) {
  const Table& table = table_of(kExponentBits);
  uint64_t limit = vector_limit<V>(bytes, kExponentBits, first + count);
  size_t i = 0;
  const auto plan = V::plan(table.lanes[0]);  // `first` is a multiple of 8
  const auto bias = V::broadcast(base + 127);
  for (; first + i < limit; i += V::kWidth) {
    V::store(out + i, powers<V>(V::codes(exponents + (first + i) / 8 * kExponentBits, plan), bias));
  }
  for (; i < count; ++i) {
    out[i] = power_of_two(base + static_cast<int>(raw_code(exponents, first + i, kExponentBits)));
  }
}

template <class V>
bool fill_affine(const uint16_t* scale, const int8_t* zero_point, size_t count, float* scales, float* zeros,
                 Form* form) {
  uint16_t largest = 0;  // of the magnitudes
  int16_t least = 1;     // negative for a negative scale; no early exit, so that compilers make vector code of it
  for (size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<uint16_t>(scale[i] & 0x7FFFu);
    const auto pattern = static_cast<int16_t>(scale[i]);
    largest = magnitude > largest ? magnitude : largest;
    least = pattern < least ? pattern : least;
  }
  const bool fused = least > 0;
  *form = fused ? Form::kFused : Form::kShifted;
  size_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    const auto factor = V::load(scale + i);
    const auto zero = V::converted(V::load(zero_point + i));
    V::store(scales + i, factor);
    if (fused) {
      V::store(zeros + i, V::multiply(zero, factor));
    } else {
      V::store(zeros + i, zero);
    }
  }
  for (; i < count; ++i) {
    scales[i] = half_to_float(scale[i]);
    zeros[i] = static_cast<float>(zero_point[i]) * (fused ? scales[i] : 1.0f);
  }
  return largest < 0x7C00u;
}

// `groups` whole groups that follow one another, of `vectors` vectors each: no check, no address, no table is needed
// between them. kBlock divides `vectors`, and is all of it where kWhole, so that the loops unroll. Arguments come by
// value to stay in registers: for all that the compiler knows, a store to `out` changes what a reference refers to.
template <class V, Form kForm, int kBlock, bool kWhole, class Plan, class Shift>
void decode_run(const uint8_t* source, Plan plan, Shift shift, int bits, uint64_t vectors, size_t groups,
                const float* scales, const float* zeros, float* out) {
  const size_t step = V::kWidth / 8 * static_cast<unsigned>(bits);
  const uint64_t blocks = kWhole ? 1 : vectors / kBlock;
  for (size_t group = 0; group < groups; ++group) {
    const auto scale = V::broadcast(scales[group]);
    const auto zero = V::broadcast(kForm == Form::kScaled ? 0.0f : zeros[group]);
    for (uint64_t block = 0; block < blocks; ++block) {
      for (int i = 0; i < kBlock; ++i) {
        V::store(out + i * V::kWidth, values_of<V, kForm>(V::codes(source, plan), shift, scale, zero));
        source += step;
      }
      out += kBlock * V::kWidth;
    }
  }
}

template <class V, Form kForm, class Plan, class Shift>
void decode_run(const uint8_t* source, Plan plan, Shift shift, int bits, uint64_t vectors, size_t groups,
                const float* scales, const float* zeros, float* out) {
  const auto run = vectors == 1       ? decode_run<V, kForm, 1, true, Plan, Shift>
                   : vectors == 2     ? decode_run<V, kForm, 2, true, Plan, Shift>
                   : vectors == 4     ? decode_run<V, kForm, 4, true, Plan, Shift>
                   : vectors % 4 == 0 ? decode_run<V, kForm, 4, false, Plan, Shift>
                                      : decode_run<V, kForm, 1, false, Plan, Shift>;
  run(source, plan, shift, bits, vectors, groups, scales, zeros, out);
}

// Groups [first, first + count) of a weight, whose scales (and zero points) are given. Groups are written in
// order and in whole vectors: what a vector writes beyond its group, the next groups write over.
template <class V, Form kForm>
void decode_groups(const Stream& stream, uint64_t first, size_t count, const float* scales, const float* zeros) {
  const int bits = stream.bits;
  const uint8_t* const data = stream.data;
  float* const out = stream.out;
  const uint64_t size = stream.group_size, row_size = stream.row_size;
  const Table& table = table_of(bits);
  const auto shift = V::shift(32 - bits);
  const uint64_t limit = vector_limit<V>(stream.bytes, bits, stream.values);
  const size_t step = V::kWidth / 8 * static_cast<unsigned>(bits);
  const uint64_t vectors = size % V::kWidth == 0 ? size / V::kWidth : 0;
  const uint64_t per_row = (row_size + size - 1) / size;
  uint64_t column = first % per_row * size;
  uint64_t value = first / per_row * row_size + column;
  size_t group = 0;
  while (group < count) {
    const uint64_t bit = value * static_cast<unsigned>(bits);
    const uint8_t* source = data + (bit >> 3);
    const auto plan = V::plan(table.lanes[bit & 7]);
    const uint64_t left = row_size - column;
    if (vectors != 0 && left >= size && value < limit) {
      // Whole groups of whole vectors, up to the row's end or to where the last vectors could reach too far.
      uint64_t run = left / size;
      const uint64_t safe = (limit - 1 - value + V::kWidth) / size;
      if (run > safe) run = safe;
      if (run > count - group) run = count - group;
      if (run > 0) {
        const size_t groups = static_cast<size_t>(run);
        const float* const zero = kForm == Form::kScaled ? nullptr : zeros + group;
        decode_run<V, kForm>(source, plan, shift, bits, vectors, groups, scales + group, zero, out + value);
        value += run * size;
        column += run * size;
        if (column == row_size) column = 0;
        group += groups;
        continue;
      }
    }
    const uint64_t length = left < size ? left : size;
    const uint64_t end = value + length;
    const uint64_t stop = end < limit ? end : limit;
    const auto scale = V::broadcast(scales[group]);
    const auto zero = V::broadcast(kForm == Form::kScaled ? 0.0f : zeros[group]);
    for (; value < stop; value += V::kWidth, source += step) {
      V::store(out + value, values_of<V, kForm>(V::codes(source, plan), shift, scale, zero));
    }
    for (; value < end; ++value) {  // the last values of the weight
      out[value] = formed<kForm>(static_cast<float>(signed_code(data, value, bits)), scales[group],
                                 kForm == Form::kScaled ? 0.0f : zeros[group]);
    }
    value = end;
    column = left == length ? 0 : column + length;
    ++group;
  }
}

template <class V>
void decode_form(Form form, const Stream& stream, uint64_t first, size_t count, const float* scales,
                 const float* zeros) {
  switch (form) {
    case Form::kScaled:
      return decode_groups<V, Form::kScaled>(stream, first, count, scales, zeros);
    case Form::kShifted:
      return decode_groups<V, Form::kShifted>(stream, first, count, scales, zeros);
    case Form::kFused:
      return decode_groups<V, Form::kFused>(stream, first, count, scales, zeros);
  }
}

template <class V>
constexpr Kernel kernel_of() {
  return {fill_powers<V>, fill_affine<V>, decode_form<V>,    unpack_codes<V>, affine_row,
          gse_row,        trellis_pass,   trellis_values<V>, trellis_codes<V>};
}

}  // namespace
}  // namespace onnxq
