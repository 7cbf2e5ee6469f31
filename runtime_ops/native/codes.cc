#include "codes.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "kernel_types.h"

namespace onnxq {
namespace {

Status begin(const Layout& layout, const uint8_t* packed, size_t packed_bytes, const CodeRows& out, int isa,
             const Kernel** kernel) {
  const Status buffers = check_buffers(layout, packed, packed_bytes, out.codes, out.count);
  if (buffers != kOk) return buffers;
  if (out.fits == nullptr) return kNullPointer;
  if (out.rows < layout.values / layout.row_size) return kRowsTooShort;
  Isa found;
  const Status status = resolve_isa(isa, &found);
  if (status == kOk) *kernel = kernel_of(found);
  return status;
}

// Unpacks, then lets convert(row, its number, its first group) say whether a row fits.
template <class Convert>
void each_row(const Kernel& kernel, const Layout& layout, const uint8_t* packed, size_t packed_bytes,
              const CodeRows& out, Convert convert) {
  const uint64_t useful = layout.packed_bytes + 64;  // as in decode.cc
  const size_t bytes = packed_bytes < useful ? packed_bytes : static_cast<size_t>(useful);
  kernel.unpack(packed, bytes, layout.bits, layout.values, out.codes);
  const uint64_t rows = layout.values / layout.row_size, groups = layout.groups / rows;
  for (uint64_t row = 0; row < rows; ++row) {
    int8_t* const codes = out.codes + row * layout.row_size;
    const bool fits = convert(CodeRow{codes, layout.row_size, layout.group_size, layout.bits}, row, row * groups);
    out.fits[row] = fits ? 1 : 0;
    if (!fits) std::memset(codes, 0, static_cast<size_t>(layout.row_size));
  }
}

}  // namespace

Status decode_codes(const GseWeight& weight, const CodeRows& out, float* scale, int isa) {
  const Layout& layout = weight.layout;
  const Kernel* kernel = nullptr;
  const Status status = begin(layout, weight.packed, weight.packed_bytes, out, isa, &kernel);
  if (status != kOk) return status;
  if (weight.exponents == nullptr || scale == nullptr) return kNullPointer;
  if (weight.exponent_bytes < layout.exponent_bytes) return kExponentsTooShort;
  const Status base = check_exponent_base(weight.exponent_base, layout.bits);
  if (base != kOk) return base;
  each_row(*kernel, layout, weight.packed, weight.packed_bytes, out,
           [&](const CodeRow& codes, uint64_t row, uint64_t group) {
             int lowest = 0;
             const bool fits = kernel->gse_row(codes, weight.exponents, group, &lowest);
             const float step = std::ldexp(1.0f, weight.exponent_base + lowest);
             scale[row] = fits ? step : std::numeric_limits<float>::quiet_NaN();
             return fits;
           });
  return kOk;
}

Status decode_codes(const AffineWeight& weight, const CodeRows& out, int isa) {
  const Layout& layout = weight.layout;
  const Kernel* kernel = nullptr;
  const Status status = begin(layout, weight.packed, weight.packed_bytes, out, isa, &kernel);
  if (status != kOk) return status;
  if (weight.zero_point == nullptr) return kNullPointer;
  if (weight.groups < layout.groups) return kScalesTooShort;
  each_row(*kernel, layout, weight.packed, weight.packed_bytes, out,
           [&](const CodeRow& codes, uint64_t, uint64_t group) {
             return kernel->affine_row(codes, weight.zero_point + group);
           });
  return kOk;
}

}  // namespace onnxq
