// NEON of 64-bit ARM, which every such processor has: 8 values, two registers, at a time from one 64-bit load.
#include "kernel_types.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#include <arm_neon.h>

#include "kernel.h"

namespace onnxq {
namespace {

struct Neon {
  static constexpr size_t kWidth = 8;
  static constexpr size_t kLoadBytes = 8;
  using Ints = int32x4x2_t;
  using Floats = float32x4x2_t;
  struct Plan {
    uint8x16_t bytes[2];
    int16x8_t factor[2];
  };

  static Plan plan(const Lanes& lanes) {
    return {{vld1q_u8(lanes.bytes), vld1q_u8(lanes.bytes + 16)},
            {vreinterpretq_s16_s32(vld1q_s32(lanes.factor)), vreinterpretq_s16_s32(vld1q_s32(lanes.factor + 4))}};
  }
  static Ints codes(const uint8_t* source, const Plan& plan) {
    const uint8x8_t word = vld1_u8(source);
    const uint8x16_t twice = vcombine_u8(word, word);
    const auto half = [&](int i) {
      const int16x8_t bytes = vreinterpretq_s16_u8(vqtbl1q_u8(twice, plan.bytes[i]));
      return vreinterpretq_s32_s16(vmulq_s16(bytes, plan.factor[i]));
    };
    return {{half(0), half(1)}};
  }

  static Ints windows(const uint8_t* source, const Plan& plan) {
    const uint8x8_t word = vld1_u8(source);
    const uint8x16_t twice = vcombine_u8(word, word);
    const auto half = [&](int i) {
      const uint32x4_t bytes = vreinterpretq_u32_u8(vqtbl1q_u8(twice, plan.bytes[i]));
      const uint32x4_t upwards = vshlq_u32(bytes, vreinterpretq_s32_s16(plan.factor[i]));
      return vreinterpretq_s32_u32(vshrq_n_u32(upwards, 32 - kWindow));
    };
    return {{half(0), half(1)}};
  }

  static Ints broadcast(int32_t value) { return {{vdupq_n_s32(value), vdupq_n_s32(value)}}; }
  static Ints add(Ints a, Ints b) { return {{vaddq_s32(a.val[0], b.val[0]), vaddq_s32(a.val[1], b.val[1])}}; }
  static int32x4_t shift(int by) { return vdupq_n_s32(-by); }  // a negative shift to the left is one to the right
  static Ints signed_right(Ints a, int32x4_t by) { return {{vshlq_s32(a.val[0], by), vshlq_s32(a.val[1], by)}}; }
  template <int kBy>
  static Ints right(Ints a) {
    const auto half = [](int32x4_t bits) {
      return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(bits), kBy));
    };
    return {{half(a.val[0]), half(a.val[1])}};
  }
  template <int kBy>
  static Ints left(Ints a) {
    return {{vshlq_n_s32(a.val[0], kBy), vshlq_n_s32(a.val[1], kBy)}};
  }
  static Ints load(const int8_t* from) {
    const int16x8_t wide = vmovl_s8(vld1_s8(from));
    return {{vmovl_s16(vget_low_s16(wide)), vmovl_s16(vget_high_s16(wide))}};
  }

  static void store(int8_t* to, Ints a) {
    vst1_s8(to, vmovn_s16(vcombine_s16(vmovn_s32(a.val[0]), vmovn_s32(a.val[1]))));
  }
  static void store(uint16_t* to, Ints a) {
    vst1q_u16(to, vreinterpretq_u16_s16(vcombine_s16(vmovn_s32(a.val[0]), vmovn_s32(a.val[1]))));
  }

  static Floats broadcast(float value) { return {{vdupq_n_f32(value), vdupq_n_f32(value)}}; }
  static Floats converted(Ints a) { return {{vcvtq_f32_s32(a.val[0]), vcvtq_f32_s32(a.val[1])}}; }
  static Floats pattern(Ints a) { return {{vreinterpretq_f32_s32(a.val[0]), vreinterpretq_f32_s32(a.val[1])}}; }
  static Floats multiply(Floats a, Floats b) {
    return {{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}};
  }
  static Floats subtract(Floats a, Floats b) {
    return {{vsubq_f32(a.val[0], b.val[0]), vsubq_f32(a.val[1], b.val[1])}};
  }
  static Floats multiply_subtract(Floats a, Floats b, Floats c) {
    return {{vfmaq_f32(vnegq_f32(c.val[0]), a.val[0], b.val[0]), vfmaq_f32(vnegq_f32(c.val[1]), a.val[1], b.val[1])}};
  }
  static Floats load(const uint16_t* halves) {
    const auto half = [](const uint16_t* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); };
    return {{half(halves), half(halves + 4)}};
  }
  static void store(float* to, Floats a) {
    vst1q_f32(to, a.val[0]);
    vst1q_f32(to + 4, a.val[1]);
  }

  static void turn(const int8_t* from, size_t from_stride, int8_t* to, size_t to_stride) {
    int16x8_t pairs[4];
    for (size_t i = 0; i < 4; ++i) {
      const int8x8x2_t zipped = vzip_s8(vld1_s8(from + 2 * i * from_stride), vld1_s8(from + (2 * i + 1) * from_stride));
      pairs[i] = vreinterpretq_s16_s8(vcombine_s8(zipped.val[0], zipped.val[1]));
    }
    const int16x8x2_t low = vzipq_s16(pairs[0], pairs[1]), high = vzipq_s16(pairs[2], pairs[3]);
    for (size_t i = 0; i < 2; ++i) {
      const int32x4x2_t both = vzipq_s32(vreinterpretq_s32_s16(low.val[i]), vreinterpretq_s32_s16(high.val[i]));
      for (size_t j = 0; j < 2; ++j) {
        const int8x16_t rows = vreinterpretq_s8_s32(both.val[j]);
        vst1_s8(to + (4 * i + 2 * j) * to_stride, vget_low_s8(rows));
        vst1_s8(to + (4 * i + 2 * j + 1) * to_stride, vget_high_s8(rows));
      }
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
