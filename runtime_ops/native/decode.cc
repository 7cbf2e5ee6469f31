// Checks, then walks over a weight in stretches of groups whose scales fit in a small buffer.
#include "decode.h"

#include "kernel_types.h"

namespace onnxq {
namespace {

constexpr size_t kStretch = 512;  // groups; a multiple of 8

const Kernel* kernel_for(Isa isa, const Layout& layout) {
  // A group shorter than a vector of AVX-512 fills one of AVX2 better, and every processor with one has both.
  if (isa == kAvx512 && layout.group_size < 16 && avx2_kernel() != nullptr) isa = kAvx2;
  return kernel_of(isa);
}

template <class Weight>
Status begin(const Weight& weight, float* out, size_t out_count, int isa, const Kernel** kernel, Stream* stream) {
  const Layout& layout = weight.layout;
  const Status buffers = check_buffers(layout, weight.packed, weight.packed_bytes, out, out_count);
  if (buffers != kOk) return buffers;
  Isa found;
  const Status status = resolve_isa(isa, &found);
  if (status != kOk) return status;
  *kernel = kernel_for(found, layout);
  // Bytes beyond the codes may be read with them where there are any, but no more than a vector's.
  const uint64_t useful = layout.packed_bytes + 64;
  const size_t bytes = weight.packed_bytes < useful ? weight.packed_bytes : static_cast<size_t>(useful);
  *stream = {weight.packed, bytes, layout.bits, layout.row_size, layout.group_size, layout.values, out};
  return kOk;
}

// Rows of whole groups are one long row: the kernel then never has to look for a row's end.
void join_rows(const Layout& layout, Stream* stream) {
  if (layout.row_size % layout.group_size == 0) stream->row_size = layout.values;
}

}  // namespace

Status decode(const GseWeight& weight, float* out, size_t out_count, int isa) {
  const Kernel* kernel = nullptr;
  Stream stream;
  const Status status = begin(weight, out, out_count, isa, &kernel, &stream);
  if (status != kOk) return status;
  const Layout& layout = weight.layout;
  if (weight.exponents == nullptr) return kNullPointer;
  if (weight.exponent_bytes < layout.exponent_bytes) return kExponentsTooShort;
  const Status base = check_exponent_base(weight.exponent_base, layout.bits);
  if (base != kOk) return base;
  join_rows(layout, &stream);
  const uint64_t useful = layout.exponent_bytes + 64;
  const size_t bytes = weight.exponent_bytes < useful ? weight.exponent_bytes : static_cast<size_t>(useful);
  float scales[kStretch];
  for (uint64_t first = 0; first < layout.groups; first += kStretch) {
    const uint64_t left = layout.groups - first;
    const size_t count = left < kStretch ? static_cast<size_t>(left) : kStretch;
    kernel->fill_powers(weight.exponents, bytes, first, count, weight.exponent_base, scales);
    kernel->decode(Form::kScaled, stream, first, count, scales, nullptr);
  }
  return kOk;
}

Status decode(const AffineWeight& weight, float* out, size_t out_count, int isa) {
  const Kernel* kernel = nullptr;
  Stream stream;
  const Status status = begin(weight, out, out_count, isa, &kernel, &stream);
  if (status != kOk) return status;
  const Layout& layout = weight.layout;
  if (weight.scale == nullptr || weight.zero_point == nullptr) return kNullPointer;
  if (weight.groups < layout.groups) return kScalesTooShort;
  join_rows(layout, &stream);
  float scales[kStretch];
  float zeros[kStretch];
  for (uint64_t first = 0; first < layout.groups; first += kStretch) {
    const uint64_t left = layout.groups - first;
    const size_t count = left < kStretch ? static_cast<size_t>(left) : kStretch;
    Form form;
    if (!kernel->fill_affine(weight.scale + first, weight.zero_point + first, count, scales, zeros, &form)) {
      return kBadScale;
    }
    kernel->decode(form, stream, first, count, scales, zeros);
  }
  return kOk;
}

}  // namespace onnxq
