// Blocks of 8 by 8 values, turned over in registers: the same for AVX2 and AVX-512.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace onnxq {
namespace {

inline void turn_block(const int8_t* from, size_t from_stride, int8_t* to, size_t to_stride) {
  __m128i pairs[4];
  for (size_t i = 0; i < 4; ++i) {
    const int8_t* const row = from + 2 * i * from_stride;
    pairs[i] = _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)),
                                 _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + from_stride)));
  }
  const __m128i low[2] = {_mm_unpacklo_epi16(pairs[0], pairs[1]), _mm_unpackhi_epi16(pairs[0], pairs[1])};
  const __m128i high[2] = {_mm_unpacklo_epi16(pairs[2], pairs[3]), _mm_unpackhi_epi16(pairs[2], pairs[3])};
  for (size_t i = 0; i < 2; ++i) {
    const __m128i both[2] = {_mm_unpacklo_epi32(low[i], high[i]), _mm_unpackhi_epi32(low[i], high[i])};
    for (size_t j = 0; j < 2; ++j) {
      int8_t* const row = to + (4 * i + 2 * j) * to_stride;
      _mm_storel_epi64(reinterpret_cast<__m128i*>(row), both[j]);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(row + to_stride), _mm_unpackhi_epi64(both[j], both[j]));
    }
  }
}

}  // namespace
}  // namespace onnxq
