#include "reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace reference {
namespace {

int code(const uint8_t* stream, uint64_t index, int bits, bool is_signed) {
  int value = 0;
  for (int i = 0; i < bits; ++i) {
    const uint64_t bit = index * static_cast<uint64_t>(bits) + static_cast<uint64_t>(i);
    value |= ((stream[bit / 8] >> (bit % 8)) & 1) << i;
  }
  return is_signed && (value >> (bits - 1)) != 0 ? value - (1 << bits) : value;
}

float half(uint16_t pattern) {
  const int exponent = (pattern >> 10) & 31, fraction = pattern & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return static_cast<float>(pattern >> 15 ? -magnitude : magnitude);
}

// Calls body(index of the group, index of the value) for all values in order.
template <class Body>
void each(const Sizes& sizes, Body body) {
  uint64_t group = 0, value = 0;
  for (uint64_t row = 0; row < sizes.rows; ++row) {
    for (uint64_t column = 0; column < sizes.row_size; ++column) {
      if (column != 0 && column % sizes.group_size == 0) ++group;
      body(group, value++);
    }
    ++group;
  }
}

}  // namespace

void gse(const uint8_t* packed, const uint8_t* exponents, const Sizes& sizes, int base, float* values) {
  each(sizes, [&](uint64_t group, uint64_t i) {
    const int exponent = base + code(exponents, group, 5, false);
    values[i] = static_cast<float>(std::ldexp(code(packed, i, sizes.bits, true), exponent));
  });
}

void affine(const uint8_t* packed, const uint16_t* scale, const int8_t* zero_point, const Sizes& sizes, float* values) {
  each(sizes, [&](uint64_t group, uint64_t i) {
    values[i] = static_cast<float>(code(packed, i, sizes.bits, true) - zero_point[group]) * half(scale[group]);
  });
}

namespace {

// Rows of which a number is no int8 are zeros.
void put_rows(const std::vector<double>& wished, const Sizes& sizes, int8_t* codes, uint8_t* fits) {
  for (uint64_t row = 0; row < sizes.rows; ++row) {
    const double* const from = wished.data() + row * sizes.row_size;
    const auto small = [](double number) { return number >= -128 && number <= 127; };
    fits[row] = std::all_of(from, from + sizes.row_size, small) ? 1 : 0;
    for (uint64_t i = 0; i < sizes.row_size; ++i) {
      codes[row * sizes.row_size + i] = fits[row] != 0 ? static_cast<int8_t>(from[i]) : int8_t{0};
    }
  }
}

}  // namespace

void gse_codes(const uint8_t* packed, const uint8_t* exponents, const Sizes& sizes, int base, int8_t* codes,
               float* scale, uint8_t* fits) {
  std::vector<int> lowest(sizes.rows, 32);
  each(sizes, [&](uint64_t group, uint64_t i) {
    const int exponent = code(exponents, group, 5, false);
    int& least = lowest[i / sizes.row_size];
    if (code(packed, i, sizes.bits, true) != 0 && exponent < least) least = exponent;
  });
  for (int& least : lowest) least = least == 32 ? 0 : least;
  std::vector<double> wished(sizes.rows * sizes.row_size);
  each(sizes, [&](uint64_t group, uint64_t i) {
    const int by = code(exponents, group, 5, false) - lowest[i / sizes.row_size];
    wished[i] = std::ldexp(code(packed, i, sizes.bits, true), by);
  });
  put_rows(wished, sizes, codes, fits);
  for (uint64_t row = 0; row < sizes.rows; ++row) {
    scale[row] = fits[row] != 0 ? static_cast<float>(std::ldexp(1, base + lowest[row])) : NAN;
  }
}

void affine_codes(const uint8_t* packed, const int8_t* zero_point, const Sizes& sizes, int8_t* codes, uint8_t* fits) {
  std::vector<double> wished(sizes.rows * sizes.row_size);
  each(sizes, [&](uint64_t group, uint64_t i) { wished[i] = code(packed, i, sizes.bits, true) - zero_point[group]; });
  put_rows(wished, sizes, codes, fits);
}

void trellis(const uint8_t* packed, const int8_t* levels, const Sizes& sizes, int8_t* codes) {
  for (uint64_t t = 0; t < sizes.rows * sizes.row_size; ++t) {
    unsigned window = 0;
    for (uint64_t i = 0, bit = t * static_cast<uint64_t>(sizes.bits); i < 12; ++i, ++bit) {
      window = window << 1 | ((packed[bit / 8] >> (7 - bit % 8)) & 1u);
    }
    codes[t % sizes.rows * sizes.row_size + t / sizes.rows] = levels[window];
  }
}

}  // namespace reference
