// Plain C++: what every processor runs, and what the others are compared with.
#include "kernel.h"

namespace onnxq {
namespace {

// A vector that is not computed before it is stored, one lane after the other: at(i) gives lane i. A loop for each
// operation would keep every step in memory.
template <class At>
struct Lazy {
  At at;
};

template <class At>
Lazy<At> lazy(At at) {
  return {at};
}

struct Scalar {
  static constexpr size_t kWidth = 8;
  static constexpr size_t kLoadBytes = 8;
  struct Plan {
    unsigned bits, remainder;
  };

  static Plan plan(const Lanes& lanes) { return {lanes.bits, lanes.remainder}; }

  // 8 codes and the remainder fit in 64 bits: 7 + 8 * 7, or 0 + 8 * 8.
  static auto codes(const uint8_t* source, Plan plan) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 8; ++i) word |= static_cast<uint64_t>(source[i]) << (8 * i);
    word >>= plan.remainder;
    return lazy([=](unsigned i) {
      return static_cast<int32_t>(static_cast<uint32_t>(word >> (i * plan.bits)) << (32 - plan.bits));
    });
  }

  // And 8 windows: 7 + 7 * 5 + 12.
  static auto windows(const uint8_t* source, Plan plan) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 8; ++i) word = word << 8 | source[i];
    word <<= plan.remainder;
    return lazy([=](unsigned i) { return static_cast<size_t>(word << (i * plan.bits) >> (64 - kWindow)); });
  }
  template <class T>
  static auto broadcast(T value) {
    return lazy([=](unsigned) { return value; });
  }
  template <class A, class B>
  static auto add(A a, B b) {
    return lazy([=](unsigned i) { return a.at(i) + b.at(i); });
  }
  static int shift(int by) { return by; }
  template <class A>
  static auto signed_right(A a, int by) {
    return lazy([=](unsigned i) { return a.at(i) >> by; });
  }
  template <int kBy, class A>
  static auto right(A a) {
    return lazy([=](unsigned i) { return static_cast<int32_t>(static_cast<uint32_t>(a.at(i)) >> kBy); });
  }
  template <int kBy, class A>
  static auto left(A a) {
    return lazy([=](unsigned i) { return static_cast<int32_t>(static_cast<uint32_t>(a.at(i)) << kBy); });
  }
  static auto load(const int8_t* from) {
    return lazy([=](unsigned i) { return int32_t{from[i]}; });
  }

  template <class A>
  static auto converted(A a) {
    return lazy([=](unsigned i) { return static_cast<float>(a.at(i)); });
  }
  template <class A>
  static auto pattern(A a) {
    return lazy([=](unsigned i) {
      const int32_t bits = a.at(i);
      float value;
      memcpy(&value, &bits, sizeof value);
      return value;
    });
  }
  template <class A, class B>
  static auto multiply(A a, B b) {
    return lazy([=](unsigned i) { return a.at(i) * b.at(i); });
  }
  template <class A, class B>
  static auto subtract(A a, B b) {
    return lazy([=](unsigned i) { return a.at(i) - b.at(i); });
  }
  template <class A, class B, class C>
  static auto multiply_subtract(A a, B b, C c) {
    return lazy([=](unsigned i) { return a.at(i) * b.at(i) - c.at(i); });
  }
  static auto load(const uint16_t* halves) {
    return lazy([=](unsigned i) { return half_to_float(halves[i]); });
  }
  template <class T, class A>
  static void store(T* to, A a) {
    for (unsigned i = 0; i < 8; ++i) to[i] = static_cast<T>(a.at(i));
  }

  static void turn(const int8_t* from, size_t from_stride, int8_t* to, size_t to_stride) {
    for (size_t row = 0; row < 8; ++row) {
      for (size_t column = 0; column < 8; ++column) to[row * to_stride + column] = from[column * from_stride + row];
    }
  }
};

constexpr Kernel kKernel = kernel_of<Scalar>();

}  // namespace

const Kernel* scalar_kernel() { return &kKernel; }

}  // namespace onnxq
