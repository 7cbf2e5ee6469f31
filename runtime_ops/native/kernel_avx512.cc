// AVX-512 (F, BW, VL): 16 values at a time from one 128-bit load.
#include "kernel_types.h"

#if defined(ONNXQ_AVX512)

#include <immintrin.h>

#include "kernel.h"
#include "kernel_x86.h"

namespace onnxq {
namespace {

struct Avx512 {
  static constexpr size_t kWidth = 16;
  static constexpr size_t kLoadBytes = 16;
  using Ints = __m512i;
  using Floats = __m512;
  struct Plan {
    Ints bytes, factor;
  };

  static Plan plan(const Lanes& lanes) { return {_mm512_load_si512(lanes.bytes), _mm512_load_si512(lanes.factor)}; }
  static Ints codes(const uint8_t* source, const Plan& plan) {
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    return _mm512_mullo_epi16(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(word), plan.bytes), plan.factor);
  }

  static Ints windows(const uint8_t* source, const Plan& plan) {
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    const Ints bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(word), plan.bytes);
    return _mm512_srli_epi32(_mm512_sllv_epi32(bytes, plan.factor), 32 - kWindow);
  }

  static Ints broadcast(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints shift(int by) { return _mm512_set1_epi32(by); }
  static Ints signed_right(Ints a, Ints by) { return _mm512_srav_epi32(a, by); }
  template <int kBy>
  static Ints right(Ints a) {
    return _mm512_srli_epi32(a, kBy);
  }
  template <int kBy>
  static Ints left(Ints a) {
    return _mm512_slli_epi32(a, kBy);
  }
  static Ints load(const int8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static void store(int8_t* to, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a)); }
  static void store(uint16_t* to, Ints a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a));
  }

  static Floats broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats converted(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Floats pattern(Ints a) { return _mm512_castsi512_ps(a); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply_subtract(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
  static Floats load(const uint16_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }
  static void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }

  static void turn(const int8_t* from, size_t from_stride, int8_t* to, size_t to_stride) {
    turn_block(from, from_stride, to, to_stride);
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
