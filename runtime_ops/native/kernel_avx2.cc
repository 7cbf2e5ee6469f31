// AVX2 with FMA and F16C: 8 values at a time from one 64-bit load.
#include "kernel_types.h"

#if defined(ONNXQ_AVX2)

#include <immintrin.h>

#include "kernel.h"
#include "kernel_x86.h"

namespace onnxq {
namespace {

struct Avx2 {
  static constexpr size_t kWidth = 8;
  static constexpr size_t kLoadBytes = 8;
  using Ints = __m256i;
  using Floats = __m256;
  struct Plan {
    Ints bytes, factor;
  };

  static Plan plan(const Lanes& lanes) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(lanes.bytes)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes.factor))};
  }
  static Ints codes(const uint8_t* source, const Plan& plan) {
    int64_t word;
    memcpy(&word, source, sizeof word);
    return _mm256_mullo_epi16(_mm256_shuffle_epi8(_mm256_set1_epi64x(word), plan.bytes), plan.factor);
  }

  static Ints windows(const uint8_t* source, const Plan& plan) {
    int64_t word;
    memcpy(&word, source, sizeof word);
    const Ints bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), plan.bytes);
    return _mm256_srli_epi32(_mm256_sllv_epi32(bytes, plan.factor), 32 - kWindow);
  }

  static Ints broadcast(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints shift(int by) { return _mm256_set1_epi32(by); }
  static Ints signed_right(Ints a, Ints by) { return _mm256_srav_epi32(a, by); }
  template <int kBy>
  static Ints right(Ints a) {
    return _mm256_srli_epi32(a, kBy);
  }
  template <int kBy>
  static Ints left(Ints a) {
    return _mm256_slli_epi32(a, kBy);
  }
  static Ints load(const int8_t* from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }

  static void store(int8_t* to, Ints a) {
    const __m256i words = _mm256_packs_epi32(a, a), bytes = _mm256_packs_epi16(words, words);
    const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi32(low, high));
  }
  static void store(uint16_t* to, Ints a) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0x88);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(words));
  }

  static Floats broadcast(float value) { return _mm256_set1_ps(value); }
  static Floats converted(Ints a) { return _mm256_cvtepi32_ps(a); }
  static Floats pattern(Ints a) { return _mm256_castsi256_ps(a); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats multiply_subtract(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }
  static Floats load(const uint16_t* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  }
  static void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }

  static void turn(const int8_t* from, size_t from_stride, int8_t* to, size_t to_stride) {
    turn_block(from, from_stride, to, to_stride);
  }
};

constexpr Kernel kKernel = kernel_of<Avx2>();

}  // namespace

const Kernel* avx2_kernel() { return &kKernel; }

}  // namespace onnxq

#else

namespace onnxq {

const Kernel* avx2_kernel() { return nullptr; }

}  // namespace onnxq

#endif
