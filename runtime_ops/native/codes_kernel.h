// The part of a kernel (kernel.h) that gives int8 codes instead of floats. Rows are plain loops, which compilers turn
// into vectors of this file's instruction set.
#pragma once

#include <string.h>

#include "kernel_types.h"
#include "stream_codes.h"

namespace onnxq {
namespace {

template <class V>
void unpack_codes(const uint8_t* data, size_t bytes, int bits, uint64_t count, int8_t* out) {
  if (bits == 8) {
    memcpy(out, data, static_cast<size_t>(count));
    return;
  }
  const uint64_t limit = vector_limit<V>(bytes, bits, count);
  const size_t step = V::kWidth / 8 * static_cast<unsigned>(bits);
  const auto plan = V::plan(table_of(bits).lanes[0]);
  const auto shift = V::shift(32 - bits);
  uint64_t i = 0;
  for (const uint8_t* source = data; i < limit; i += V::kWidth, source += step) {
    V::store(out + i, V::signed_right(V::codes(source, plan), shift));
  }
  for (; i < count; ++i) out[i] = static_cast<int8_t>(signed_code(data, i, bits));
}

struct Extremes {
  int least, most;
};

inline Extremes extremes(const int8_t* codes, size_t count) {
  int8_t least = codes[0], most = codes[0];
  for (size_t i = 1; i < count; ++i) {
    least = codes[i] < least ? codes[i] : least;
    most = codes[i] > most ? codes[i] : most;
  }
  return {least, most};
}

inline bool in_int8(int least, int most) { return least >= INT8_MIN && most <= INT8_MAX; }

// Calls body(group of the row, its first code, its length) until one returns false.
template <class Body>
bool each_group(const CodeRow& row, Body body) {
  uint64_t group = 0;
  for (uint64_t column = 0; column < row.size; column += row.group_size, ++group) {
    const uint64_t left = row.size - column;
    const size_t length = static_cast<size_t>(left < row.group_size ? left : row.group_size);
    if (!body(group, row.codes + column, length)) return false;
  }
  return true;
}

inline bool affine_row(const CodeRow& row, const int8_t* zero_point) {
  const int sign = 1 << (row.bits - 1);
  return each_group(row, [=](uint64_t group, int8_t* codes, size_t count) {
    const int zero = zero_point[group];
    if (zero == 0) return true;
    if (!in_int8(-sign - zero, sign - 1 - zero)) {  // not whatever the codes are
      const Extremes found = extremes(codes, count);
      if (!in_int8(found.least - zero, found.most - zero)) return false;
    }
    for (size_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(codes[i] - zero);
    return true;
  });
}

inline bool gse_row(const CodeRow& row, const uint8_t* exponents, uint64_t first, int* lowest) {
  const auto exponent = [=](uint64_t group) {
    return static_cast<int>(raw_code(exponents, first + group, kExponentBits));
  };
  const auto silent = [](Extremes found) { return found.least == 0 && found.most == 0; };
  int least = kTopExponent + 1;
  each_group(row, [&](uint64_t group, const int8_t* codes, size_t count) {
    const int own = exponent(group);
    if (own < least && !silent(extremes(codes, count))) least = own;
    return true;
  });
  *lowest = least > kTopExponent ? 0 : least;
  return each_group(row, [&](uint64_t group, int8_t* codes, size_t count) {
    const int by = exponent(group) - *lowest;
    if (by == 0) return true;
    if (by < 0 || by + row.bits > 8) {  // below the least one are only zeros
      const Extremes found = extremes(codes, count);
      if (silent(found)) return true;
      if (by > 7 || !in_int8(found.least * (1 << by), found.most * (1 << by))) return false;
    }
    for (size_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(static_cast<uint8_t>(codes[i]) << by);
    return true;
  });
}

}  // namespace
}  // namespace onnxq
