// The format once more, bit by bit and as slowly as it reads, for the driver and the fuzzer to compare with.
// Compiled without sanitizers, which would make it the slowest part of a fuzzer's run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reference {

struct Sizes {
  int bits;
  uint64_t rows, row_size, group_size;
};

void gse(const uint8_t* packed, const uint8_t* exponents, const Sizes& sizes, int base, float* values);

void affine(const uint8_t* packed, const uint16_t* scale, const int8_t* zero_point, const Sizes& sizes, float* values);

// Rows of int8 codes as codes.h has them; fits and scale: one a row.
void gse_codes(const uint8_t* packed, const uint8_t* exponents, const Sizes& sizes, int base, int8_t* codes,
               float* scale, uint8_t* fits);

void affine_codes(const uint8_t* packed, const int8_t* zero_point, const Sizes& sizes, int8_t* codes, uint8_t* fits);

// codes: [rows, row_size], of a chain that runs down the columns.
void trellis(const uint8_t* packed, const int8_t* levels, const Sizes& sizes, int8_t* codes);

}  // namespace reference
