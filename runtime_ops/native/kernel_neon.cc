// NEON of 64-bit ARM, which every such processor has: 8 values at a time from one 64-bit load.
#include "kernel_types.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#include <arm_neon.h>

#include "kernel.h"

namespace onnxq {
namespace {

struct Neon {
  static constexpr size_t kWidth = 8;
  static constexpr size_t kLoadBytes = 8;
  struct Plan {
    uint8x16_t bytes[2];
    int16x8_t factor[2];
  };
  struct Codes {
    int32x4_t half[2];
  };

  static Plan plan(const Table& table, unsigned remainder) {
    const Lanes& lanes = table.lanes[remainder];
    return {{vld1q_u8(lanes.bytes), vld1q_u8(lanes.bytes + 16)},
            {vreinterpretq_s16_s32(vld1q_s32(lanes.factor)), vreinterpretq_s16_s32(vld1q_s32(lanes.factor + 4))}};
  }
  static int32x4_t width(int bits) { return vdupq_n_s32(bits - 32); }  // negative: to the right
  static float32x4_t broadcast(float value) { return vdupq_n_f32(value); }

  static Codes codes(const uint8_t* source, const Plan& plan) {
    const uint8x8_t word = vld1_u8(source);
    const uint8x16_t twice = vcombine_u8(word, word);
    return {{upwards(vqtbl1q_u8(twice, plan.bytes[0]), plan.factor[0]),
             upwards(vqtbl1q_u8(twice, plan.bytes[1]), plan.factor[1])}};
  }
  static int32x4_t upwards(uint8x16_t bytes, int16x8_t factor) {
    return vreinterpretq_s32_s16(vmulq_s16(vreinterpretq_s16_u8(bytes), factor));
  }

  template <Form kForm>
  static void store_signed(float* out, const Codes& codes, int32x4_t width, float32x4_t scale,
                           float32x4_t zero) {
    for (int i = 0; i < 2; ++i) {
      const float32x4_t code = vcvtq_f32_s32(vshlq_s32(codes.half[i], width));
      if constexpr (kForm == Form::kScaled) vst1q_f32(out + 4 * i, vmulq_f32(code, scale));
      if constexpr (kForm == Form::kShifted) vst1q_f32(out + 4 * i, vmulq_f32(vsubq_f32(code, zero), scale));
      if constexpr (kForm == Form::kFused) vst1q_f32(out + 4 * i, vfmaq_f32(vnegq_f32(zero), code, scale));
    }
  }

  static void store_powers(float* out, const Codes& codes, int base) {
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t code = vshrq_n_u32(vreinterpretq_u32_s32(codes.half[i]), 32 - kExponentBits);
      const uint32x4_t biased = vaddq_u32(code, vdupq_n_u32(static_cast<uint32_t>(base + 127)));
      vst1q_f32(out + 4 * i, vreinterpretq_f32_u32(vshlq_n_u32(biased, 23)));
    }
  }

  static void store_affine(float* scales, float* zeros, const uint16_t* halves, const int8_t* points, bool fused) {
    const int16x8_t wide = vmovl_s8(vld1_s8(points));
    const int32x4_t integers[2] = {vmovl_s16(vget_low_s16(wide)), vmovl_s16(vget_high_s16(wide))};
    for (int i = 0; i < 2; ++i) {
      const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + 4 * i)));
      const float32x4_t zero = vcvtq_f32_s32(integers[i]);
      vst1q_f32(scales + 4 * i, scale);
      vst1q_f32(zeros + 4 * i, fused ? vmulq_f32(zero, scale) : zero);
    }
  }
};

constexpr Kernel kKernel = kernel_of<Neon>();

}  // namespace

const Kernel* neon_kernel() { return &kKernel; }

}  // namespace onnxq

#else

namespace onnxq {

const Kernel* neon_kernel() { return nullptr; }

}  // namespace onnxq

#endif
