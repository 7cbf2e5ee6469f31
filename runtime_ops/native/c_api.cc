// The C interface for ctypes (runtime_ops/kernels.py): without an ONNX Runtime session.
// Functions return 0 or a code that onnxq_error explains. Pointers must hold what the counts beside them say.
#include "codes.h"
#include "decode.h"
#include "export.h"
#include "trellis.h"

using namespace onnxq;

// Raised whenever a signature or the meaning of an argument changes.
ONNXQ_EXPORT int onnxq_abi_version(void) { return 3; }

ONNXQ_EXPORT const char* onnxq_error(int code) { return status_text(code); }

ONNXQ_EXPORT const char* onnxq_isa_name(int isa) { return isa_name(isa); }

ONNXQ_EXPORT int onnxq_isa_supported(int isa) { return isa_supported(isa) ? 1 : 0; }

// The instruction set that `isa = -1` stands for, or -1 where the environment asks for one that is not there.
ONNXQ_EXPORT int onnxq_best_isa(void) {
  Isa isa;
  return resolve_isa(kBestIsa, &isa) == kOk ? isa : -1;
}

ONNXQ_EXPORT int onnxq_decode_gse(const uint8_t* packed, size_t packed_bytes, const uint8_t* exponents,
                                  size_t exponent_bytes, int bits, int64_t rows, int64_t row_size, int64_t group_size,
                                  int exponent_base, float* out, size_t out_count, int isa) {
  GseWeight weight{{}, packed, packed_bytes, exponents, exponent_bytes, exponent_base};
  const Status status = make_layout(bits, rows, row_size, group_size, &weight.layout);
  return status == kOk ? decode(weight, out, out_count, isa) : status;
}

ONNXQ_EXPORT int onnxq_decode_affine(const uint8_t* packed, size_t packed_bytes, const uint16_t* scale,
                                     const int8_t* zero_point, size_t groups, int bits, int64_t rows, int64_t row_size,
                                     int64_t group_size, float* out, size_t out_count, int isa) {
  AffineWeight weight{{}, packed, packed_bytes, scale, zero_point, groups};
  const Status status = make_layout(bits, rows, row_size, group_size, &weight.layout);
  return status == kOk ? decode(weight, out, out_count, isa) : status;
}

ONNXQ_EXPORT int onnxq_trellis_path(const float* values, const float* weights, size_t count, const float* levels,
                                    int bits, int start, int end, uint16_t* path, int isa) {
  return trellis_path({values, weights, count, levels, bits, start}, end, path, isa);
}

ONNXQ_EXPORT int onnxq_decode_tcq(const uint8_t* packed, size_t packed_bytes, const float* scale, const int8_t* levels,
                                  int bits, int64_t rows, int64_t row_size, float* out, size_t out_count, int isa) {
  return decode(TrellisWeight{packed, packed_bytes, levels, bits, rows, row_size}, scale, out, out_count, isa);
}

// The same weights as int8 codes: what is decoded above is code * scale, exactly. fits: one byte a row (codes.h).
ONNXQ_EXPORT int onnxq_gse_codes(const uint8_t* packed, size_t packed_bytes, const uint8_t* exponents,
                                 size_t exponent_bytes, int bits, int64_t rows, int64_t row_size, int64_t group_size,
                                 int exponent_base, int8_t* out, size_t out_count, float* scale, uint8_t* fits,
                                 size_t row_count, int isa) {
  GseWeight weight{{}, packed, packed_bytes, exponents, exponent_bytes, exponent_base};
  const Status status = make_layout(bits, rows, row_size, group_size, &weight.layout);
  return status == kOk ? decode_codes(weight, {out, out_count, fits, row_count}, scale, isa) : status;
}

ONNXQ_EXPORT int onnxq_affine_codes(const uint8_t* packed, size_t packed_bytes, const int8_t* zero_point, size_t groups,
                                    int bits, int64_t rows, int64_t row_size, int64_t group_size, int8_t* out,
                                    size_t out_count, uint8_t* fits, size_t row_count, int isa) {
  AffineWeight weight{{}, packed, packed_bytes, nullptr, zero_point, groups};
  const Status status = make_layout(bits, rows, row_size, group_size, &weight.layout);
  return status == kOk ? decode_codes(weight, {out, out_count, fits, row_count}, isa) : status;
}

ONNXQ_EXPORT int onnxq_tcq_codes(const uint8_t* packed, size_t packed_bytes, const int8_t* levels, int bits,
                                 int64_t rows, int64_t row_size, int8_t* out, size_t out_count, int isa) {
  return decode_codes(TrellisWeight{packed, packed_bytes, levels, bits, rows, row_size}, out, out_count, isa);
}
