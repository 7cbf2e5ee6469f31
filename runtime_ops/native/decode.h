// Decoding packed weights to float32. Every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace onnxq {

enum Isa : int { kBestIsa = -1, kScalar = 0, kAvx2, kAvx512, kNeon, kIsaCount };

const char* isa_name(int isa);  // null outside [0, kIsaCount)
bool isa_supported(int isa);    // compiled in, and this processor has it

struct Kernel;
const Kernel* kernel_of(Isa isa);  // null where this build has not got it

// kBestIsa becomes what the environment variable ONNXQ_ISA names, else the best one of this processor.
// Returns kBadIsa where that or a wished one is not available.
Status resolve_isa(int wished, Isa* isa);

// The buffers of a weight. `out` has room for layout.values floats, `packed` holds packed_bytes bytes. Both
// decoders check lengths against `layout` and read or write nothing beyond what is stated.
struct GseWeight {
  Layout layout;
  const uint8_t* packed;
  size_t packed_bytes;
  const uint8_t* exponents;
  size_t exponent_bytes;
  int exponent_base;
};

struct AffineWeight {
  Layout layout;
  const uint8_t* packed;
  size_t packed_bytes;
  const uint16_t* scale;  // float16 bits, one a group
  const int8_t* zero_point;
  size_t groups;
};

Status decode(const GseWeight& weight, float* out, size_t out_count, int isa);
Status decode(const AffineWeight& weight, float* out, size_t out_count, int isa);

}  // namespace onnxq
