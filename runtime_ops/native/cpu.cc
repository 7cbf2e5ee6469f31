// Which instruction sets this processor and its operating system offer, and which one is taken.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "decode.h"
#include "kernel_types.h"

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__) || defined(_M_IX86)
#define ONNXQ_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace onnxq {
namespace {

#if defined(ONNXQ_X86)

struct Registers {
  unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf) {
  Registers r{};
#if defined(_MSC_VER)
  int found[4];
  __cpuid(found, 0);
  if (static_cast<unsigned>(found[0]) >= leaf) {
    __cpuidex(found, static_cast<int>(leaf), 0);
    r = {static_cast<unsigned>(found[0]), static_cast<unsigned>(found[1]), static_cast<unsigned>(found[2]),
         static_cast<unsigned>(found[3])};
  }
#else
  __get_cpuid_count(leaf, 0, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

// The register states that the operating system saves; an instruction set without its state must not be used.
unsigned saved_states() {
#if defined(_MSC_VER)
  return static_cast<unsigned>(_xgetbv(0));
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

struct X86 {
  bool avx2 = false, avx512 = false;
  // AMD family 25 (Zen 3 and 4) has AVX-512 in 256-bit halves; AVX2 measured 1.2 times as fast there.
  bool halves = false;

  X86() {
    const Registers first = cpuid(1), seventh = cpuid(7);
    const auto has = [](unsigned word, int bit) { return ((word >> bit) & 1u) != 0; };
    if (!has(first.c, 27)) return;  // OSXSAVE
    const unsigned states = saved_states();
    if ((states & 0x6u) != 0x6u) return;                                                   // XMM and YMM
    avx2 = has(first.c, 12) && has(first.c, 28) && has(first.c, 29) && has(seventh.b, 5);  // FMA, AVX, F16C, AVX2
    // Opmask and ZMM; F, BW, VL.
    const unsigned family = ((first.a >> 8) & 15u) + ((first.a >> 20) & 255u);
    halves = cpuid(0).b == 0x68747541u && family == 25;  // "Auth" of AuthenticAMD
    avx512 = avx2 && (states & 0xE6u) == 0xE6u && has(seventh.b, 16) && has(seventh.b, 30) && has(seventh.b, 31);
  }
};

const X86& x86() {
  static const X86 found;
  return found;
}

bool processor_has(int isa) { return isa == kAvx2 ? x86().avx2 : isa == kAvx512 && x86().avx512; }

bool prefers_avx2() { return x86().halves; }

#else

bool processor_has(int isa) { return isa == kNeon; }  // its kernel is only compiled in for 64-bit ARM

bool prefers_avx2() { return false; }

#endif

const char* const kNames[kIsaCount] = {"scalar", "avx2", "avx512", "neon"};

}  // namespace

const Kernel* kernel_of(Isa isa) {
  switch (isa) {
    case kAvx2:
      return avx2_kernel();
    case kAvx512:
      return avx512_kernel();
    case kNeon:
      return neon_kernel();
    default:
      return scalar_kernel();
  }
}

const char* isa_name(int isa) { return isa >= 0 && isa < kIsaCount ? kNames[isa] : nullptr; }

bool isa_supported(int isa) {
  if (isa < 0 || isa >= kIsaCount || kernel_of(static_cast<Isa>(isa)) == nullptr) return false;
  return isa == kScalar || processor_has(isa);
}

Status resolve_isa(int wished, Isa* isa) {
  if (wished == kBestIsa) {
    const char* name = std::getenv("ONNXQ_ISA");
    if (name == nullptr || *name == '\0') {
      *isa = kScalar;
      for (const Isa better : {kAvx2, kAvx512, kNeon}) {
        if (isa_supported(better) && !(better == kAvx512 && prefers_avx2())) *isa = better;
      }
      return kOk;
    }
    for (wished = 0; wished < kIsaCount && std::strcmp(name, kNames[wished]) != 0;) ++wished;
  }
  if (!isa_supported(wished)) return kBadIsa;
  *isa = static_cast<Isa>(wished);
  return kOk;
}

}  // namespace onnxq
