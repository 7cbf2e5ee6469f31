// Plain C++: what every processor runs, and what the others are compared with.
#include "kernel.h"

namespace onnxq {
namespace {

struct Scalar {
  static constexpr size_t kWidth = 8;
  static constexpr size_t kLoadBytes = 8;
  struct Plan {
    unsigned remainder;
  };
  struct Codes {
    uint64_t bits;
  };

  static Plan plan(const Table&, unsigned remainder) { return {remainder}; }
  static int width(int bits) { return bits; }
  static float broadcast(float value) { return value; }

  // 8 codes and the remainder fit in 64 bits: 7 + 8 * 7, or 0 + 8 * 8.
  static Codes codes(const uint8_t* source, Plan plan) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 8; ++i) word |= static_cast<uint64_t>(source[i]) << (8 * i);
    return {word >> plan.remainder};
  }

  template <Form kForm>
  static void store_signed(float* out, Codes codes, int bits, float scale, float zero) {
    const int sign = 1 << (bits - 1);
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    for (int i = 0; i < 8; ++i) {
      const int code = static_cast<int>((codes.bits >> (i * bits)) & mask);
      out[i] = formed<kForm>(static_cast<float>((code ^ sign) - sign), scale, zero);
    }
  }

  static void store_powers(float* out, Codes codes, int base) {
    for (int i = 0; i < 8; ++i) {
      const int code = static_cast<int>((codes.bits >> (i * kExponentBits)) & kTopExponent);
      out[i] = power_of_two(base + code);
    }
  }

  static void store_affine(float* scales, float* zeros, const uint16_t* halves, const int8_t* points, bool fused) {
    for (int i = 0; i < 8; ++i) {
      scales[i] = half_to_float(halves[i]);
      zeros[i] = static_cast<float>(points[i]) * (fused ? scales[i] : 1.0f);
    }
  }
};

constexpr Kernel kKernel = kernel_of<Scalar>();

}  // namespace

const Kernel* scalar_kernel() { return &kKernel; }

}  // namespace onnxq
