// AVX-512 (F, BW, VL): 16 values at a time from one 128-bit load.
#include "kernel_types.h"

#if defined(ONNXQ_AVX512)

#include <immintrin.h>

#include "kernel.h"

namespace onnxq {
namespace {

struct Avx512 {
  static constexpr size_t kWidth = 16;
  static constexpr size_t kLoadBytes = 16;
  using Codes = __m512i;
  struct Plan {
    __m512i bytes, factor;
  };

  static Plan plan(const Table& table, unsigned remainder) {
    const Lanes& lanes = table.lanes[remainder];
    return {_mm512_load_si512(lanes.bytes), _mm512_load_si512(lanes.factor)};
  }
  static __m512i width(int bits) { return _mm512_set1_epi32(32 - bits); }
  static __m512 broadcast(float value) { return _mm512_set1_ps(value); }

  static Codes codes(const uint8_t* source, const Plan& plan) {
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    return _mm512_mullo_epi16(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(word), plan.bytes), plan.factor);
  }

  template <Form kForm>
  static void store_signed(float* out, Codes codes, __m512i width, __m512 scale, __m512 zero) {
    const __m512 code = _mm512_cvtepi32_ps(_mm512_srav_epi32(codes, width));
    if constexpr (kForm == Form::kScaled) _mm512_storeu_ps(out, _mm512_mul_ps(code, scale));
    if constexpr (kForm == Form::kShifted) _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_sub_ps(code, zero), scale));
    if constexpr (kForm == Form::kFused) _mm512_storeu_ps(out, _mm512_fmsub_ps(code, scale, zero));
  }

  static void store_powers(float* out, Codes codes, int base) {
    const __m512i code = _mm512_srli_epi32(codes, 32 - kExponentBits);
    const __m512i biased = _mm512_add_epi32(code, _mm512_set1_epi32(base + 127));
    _mm512_storeu_ps(out, _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23)));
  }

  static void store_affine(float* scales, float* zeros, const uint16_t* halves, const int8_t* points, bool fused) {
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(points));
    const __m256 zero = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    _mm256_storeu_ps(scales, scale);
    _mm256_storeu_ps(zeros, fused ? _mm256_mul_ps(zero, scale) : zero);
  }
};

constexpr Kernel kKernel = kernel_of<Avx512>();

}  // namespace

const Kernel* avx512_kernel() { return &kKernel; }

}  // namespace onnxq

#else

namespace onnxq {

const Kernel* avx512_kernel() { return nullptr; }

}  // namespace onnxq

#endif
