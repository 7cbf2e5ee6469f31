// AVX2 with FMA and F16C: 8 values at a time from one 64-bit load.
#include "kernel_types.h"

#if defined(ONNXQ_AVX2)

#include <immintrin.h>

#include "kernel.h"

namespace onnxq {
namespace {

struct Avx2 {
  static constexpr size_t kWidth = 8;
  static constexpr size_t kLoadBytes = 8;
  using Codes = __m256i;
  struct Plan {
    __m256i bytes, factor;
  };

  static Plan plan(const Table& table, unsigned remainder) {
    const Lanes& lanes = table.lanes[remainder];
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(lanes.bytes)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes.factor))};
  }
  static __m256i width(int bits) { return _mm256_set1_epi32(32 - bits); }
  static __m256 broadcast(float value) { return _mm256_set1_ps(value); }

  static Codes codes(const uint8_t* source, const Plan& plan) {
    int64_t word;
    memcpy(&word, source, sizeof word);
    return _mm256_mullo_epi16(_mm256_shuffle_epi8(_mm256_set1_epi64x(word), plan.bytes), plan.factor);
  }

  template <Form kForm>
  static void store_signed(float* out, Codes codes, __m256i width, __m256 scale, __m256 zero) {
    const __m256 code = _mm256_cvtepi32_ps(_mm256_srav_epi32(codes, width));
    if constexpr (kForm == Form::kScaled) _mm256_storeu_ps(out, _mm256_mul_ps(code, scale));
    if constexpr (kForm == Form::kShifted) _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_sub_ps(code, zero), scale));
    if constexpr (kForm == Form::kFused) _mm256_storeu_ps(out, _mm256_fmsub_ps(code, scale, zero));
  }

  static void store_powers(float* out, Codes codes, int base) {
    const __m256i code = _mm256_srli_epi32(codes, 32 - kExponentBits);
    const __m256i biased = _mm256_add_epi32(code, _mm256_set1_epi32(base + 127));
    _mm256_storeu_ps(out, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
  }

  static void store_affine(float* scales, float* zeros, const uint16_t* halves, const int8_t* points, bool fused) {
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(points));
    const __m256 zero = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    _mm256_storeu_ps(scales, scale);
    _mm256_storeu_ps(zeros, fused ? _mm256_mul_ps(zero, scale) : zero);
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
