// Every kernel of this machine over every kind of odd size, with buffers that end exactly where they must, so that
// a sanitizer sees each byte too many. Prints what it ran; the exit status says whether all of it was right.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../codes.h"
#include "../decode.h"
#include "../trellis.h"
#include "reference.h"

namespace {

using namespace onnxq;

std::mt19937_64 rng(7);
long failures = 0, cases = 0;

// Heap memory of exactly this many bytes: no capacity, nothing shared, so the sanitizer guards both ends.
template <class T>
std::unique_ptr<T[]> filled(size_t count) {
  std::unique_ptr<T[]> data(new T[count]);
  for (size_t i = 0; i < count; ++i) data[i] = static_cast<T>(rng());
  return data;
}

void expect(bool right, const char* what, int isa, int bits, int64_t rows, int64_t row_size, int64_t group_size) {
  ++cases;
  if (right) return;
  ++failures;
  std::printf("WRONG %s: isa %s, bits %d, %lld rows of %lld, groups of %lld\n", what, isa_name(isa), bits,
              static_cast<long long>(rows), static_cast<long long>(row_size), static_cast<long long>(group_size));
}

void check(int bits, int64_t rows, int64_t row_size, int64_t group_size, size_t spare) {
  Layout layout;
  if (make_layout(bits, rows, row_size, group_size, &layout) != kOk) {
    expect(false, "layout", kScalar, bits, rows, row_size, group_size);
    return;
  }
  const auto values = static_cast<size_t>(layout.values), groups = static_cast<size_t>(layout.groups);
  const size_t packed_bytes = static_cast<size_t>(layout.packed_bytes) + spare;
  const size_t exponent_bytes = static_cast<size_t>(layout.exponent_bytes) + spare;
  const auto packed = filled<uint8_t>(packed_bytes);
  const auto exponents = filled<uint8_t>(exponent_bytes);
  const auto zero_point = filled<int8_t>(groups);
  auto scale = filled<uint16_t>(groups);
  const bool positive = rng() % 2 != 0;  // both forms of the affine kernel
  for (size_t i = 0; i < groups; ++i) {
    scale[i] = static_cast<uint16_t>(scale[i] % 0x7C00 | (positive ? 0 : scale[i] & 0x8000));
    if (positive && scale[i] == 0) scale[i] = 1;
  }
  const int base = -126 + static_cast<int>(rng() % static_cast<unsigned>(224 - bits));
  const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
  const reference::Sizes sizes{bits, u(rows), u(row_size), u(group_size)};
  std::vector<float> gse(values), affine(values);
  reference::gse(packed.get(), exponents.get(), sizes, base, gse.data());
  reference::affine(packed.get(), scale.get(), zero_point.get(), sizes, affine.data());
  const auto same = [values](const float* a, const std::vector<float>& b) {
    return std::memcmp(a, b.data(), values * sizeof(float)) == 0;
  };
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (!isa_supported(isa)) continue;
    auto out = filled<float>(values);
    const GseWeight one{layout, packed.get(), packed_bytes, exponents.get(), exponent_bytes, base};
    expect(decode(one, out.get(), values, isa) == kOk && same(out.get(), gse), "gse", isa, bits, rows, row_size,
           group_size);
    out = filled<float>(values);
    const AffineWeight two{layout, packed.get(), packed_bytes, scale.get(), zero_point.get(), groups};
    expect(decode(two, out.get(), values, isa) == kOk && same(out.get(), affine), "affine", isa, bits, rows, row_size,
           group_size);
    // One too few of anything is refused before anything is touched.
    GseWeight bad = one;
    --bad.packed_bytes;
    expect(spare != 0 || decode(bad, out.get(), values, isa) == kPackedTooShort, "short codes", isa, bits, rows,
           row_size, group_size);
    bad = one;
    --bad.exponent_bytes;
    expect(spare != 0 || decode(bad, out.get(), values, isa) == kExponentsTooShort, "short exponents", isa, bits, rows,
           row_size, group_size);
    expect(decode(one, out.get(), values - 1, isa) == kOutputTooShort, "short output", isa, bits, rows, row_size,
           group_size);
    AffineWeight other = two;
    --other.groups;
    expect(decode(other, out.get(), values, isa) == kScalesTooShort, "short scales", isa, bits, rows, row_size,
           group_size);
  }
}

// Exponents near each other, so that rows of both kinds come up, and groups of zeros.
void check_codes(int bits, int64_t rows, int64_t row_size, int64_t group_size, size_t spare) {
  Layout layout;
  make_layout(bits, rows, row_size, group_size, &layout);
  const auto values = static_cast<size_t>(layout.values), groups = static_cast<size_t>(layout.groups);
  const auto row_count = static_cast<size_t>(rows);
  const size_t packed_bytes = static_cast<size_t>(layout.packed_bytes) + spare;
  const size_t exponent_bytes = static_cast<size_t>(layout.exponent_bytes) + spare;
  const auto packed = filled<uint8_t>(packed_bytes), exponents = filled<uint8_t>(exponent_bytes);
  const auto zero_point = filled<int8_t>(groups);
  const int most = static_cast<int>(rng() % 4) * 3;
  for (size_t i = 0; i < groups; ++i) zero_point[i] = static_cast<int8_t>(zero_point[i] * most / 9);
  if (most != 9) {
    std::memset(exponents.get(), 0, exponent_bytes);
    for (size_t i = 0; i < groups; ++i) {
      exponents[i * 5 / 8] = static_cast<uint8_t>(exponents[i * 5 / 8] | (rng() % 2) << (i * 5 % 8));
    }
  }
  if (rng() % 3 == 0) std::memset(packed.get(), 0, packed_bytes / 2);
  const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
  const reference::Sizes sizes{bits, u(rows), u(row_size), u(group_size)};
  std::vector<int8_t> gse(values), affine(values);
  std::vector<uint8_t> gse_fits(row_count), affine_fits(row_count);
  std::vector<float> scales(row_count);
  reference::gse_codes(packed.get(), exponents.get(), sizes, -40, gse.data(), scales.data(), gse_fits.data());
  reference::affine_codes(packed.get(), zero_point.get(), sizes, affine.data(), affine_fits.data());
  const GseWeight one{layout, packed.get(), packed_bytes, exponents.get(), exponent_bytes, -40};
  const AffineWeight two{layout, packed.get(), packed_bytes, nullptr, zero_point.get(), groups};
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (!isa_supported(isa)) continue;
    const auto codes = filled<int8_t>(values);
    const auto fits = filled<uint8_t>(row_count);
    const auto scale = filled<float>(row_count);
    const CodeRows out{codes.get(), values, fits.get(), row_count};
    bool right = decode_codes(one, out, scale.get(), isa) == kOk && std::memcmp(codes.get(), gse.data(), values) == 0 &&
                 std::memcmp(fits.get(), gse_fits.data(), row_count) == 0;
    for (size_t i = 0; i < row_count; ++i) {
      right = right && (scale[i] == scales[i] || (std::isnan(scale[i]) && std::isnan(scales[i])));
    }
    expect(right, "gse codes", isa, bits, rows, row_size, group_size);
    right = decode_codes(two, out, isa) == kOk && std::memcmp(codes.get(), affine.data(), values) == 0 &&
            std::memcmp(fits.get(), affine_fits.data(), row_count) == 0;
    expect(right, "affine codes", isa, bits, rows, row_size, group_size);
    CodeRows narrow = out;
    --narrow.rows;
    CodeRows small = out;
    --small.count;
    AffineWeight bad = two;
    --bad.groups;
    right = decode_codes(one, narrow, scale.get(), isa) == kRowsTooShort &&
            decode_codes(two, narrow, isa) == kRowsTooShort &&
            decode_codes(one, small, scale.get(), isa) == kOutputTooShort &&
            decode_codes(two, small, isa) == kOutputTooShort && decode_codes(one, out, nullptr, isa) == kNullPointer &&
            decode_codes(bad, out, isa) == kScalesTooShort;
    expect(right, "short rows", isa, bits, rows, row_size, group_size);
  }
}

void check_stream(int bits, int64_t rows, int64_t columns, size_t spare) {
  const auto count = static_cast<size_t>(rows * columns);
  const size_t bytes = ((count + 7) / 8 + 1) * static_cast<size_t>(bits) + spare;
  const auto packed = filled<uint8_t>(bytes);
  const auto levels = filled<int8_t>(kStates);
  auto scale = filled<float>(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) scale[static_cast<size_t>(row)] = static_cast<float>(row + 1) / 3;
  std::vector<float> values(count);
  std::vector<int8_t> codes(count);
  const reference::Sizes sizes{bits, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), 1};
  reference::trellis(packed.get(), levels.get(), sizes, codes.data());
  for (size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(codes[i]) * scale[i / static_cast<size_t>(columns)];
  }
  const TrellisWeight weight{packed.get(), bytes, levels.get(), bits, rows, columns};
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (!isa_supported(isa)) continue;
    const auto out = filled<float>(count);
    const auto integers = filled<int8_t>(count);
    bool right = decode(weight, scale.get(), out.get(), count, isa) == kOk &&
                 std::memcmp(out.get(), values.data(), count * sizeof(float)) == 0;
    expect(right, "stream", isa, bits, rows, columns, 1);
    right = decode_codes(weight, integers.get(), count, isa) == kOk &&
            std::memcmp(integers.get(), codes.data(), count) == 0;
    expect(right, "levels", isa, bits, rows, columns, 1);
    TrellisWeight bad = weight;
    bad.packed_bytes -= spare + 1;
    right = decode(bad, scale.get(), out.get(), count, isa) == kPackedTooShort &&
            decode_codes(bad, integers.get(), count, isa) == kPackedTooShort &&
            decode(weight, scale.get(), out.get(), count - 1, isa) == kOutputTooShort &&
            decode_codes(weight, integers.get(), count - 1, isa) == kOutputTooShort;
    expect(right, "short stream", isa, bits, rows, columns, 1);
  }
}

// The windows that belong together, and no path that another instruction set found better.
void check_trellis(int bits, size_t count, int start, int end) {
  auto values = filled<float>(count), weights = filled<float>(count), levels = filled<float>(kStates);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(static_cast<int>(rng() % 400) - 200);
  for (size_t i = 0; i < count; ++i) weights[i] = static_cast<float>(rng() % 1000) / 1000.0f;
  for (size_t i = 0; i < kStates; ++i) levels[i] = static_cast<float>(static_cast<int>(rng() % 255) - 127);
  const Chain chain{values.get(), weights.get(), count, levels.get(), bits, start};
  std::vector<uint16_t> first;
  const size_t keep = (kStates >> bits) - 1;
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (!isa_supported(isa)) continue;
    auto path = filled<uint16_t>(count);
    bool right = trellis_path(chain, end, path.get(), isa) == kOk;
    for (size_t t = 0; t < count; ++t) {
      const bool known = t != 0 || start >= 0;
      const size_t before = t != 0 ? path[t - 1] : static_cast<size_t>(start);
      right = right && path[t] < kStates && (!known || (before & keep) == static_cast<size_t>(path[t] >> bits));
    }
    if (end >= 0) right = right && (path[count - 1] & keep) == (static_cast<size_t>(end) & keep);
    if (first.empty()) first.assign(path.get(), path.get() + count);
    right = right && std::memcmp(first.data(), path.get(), count * sizeof(uint16_t)) == 0;
    expect(right, "trellis", isa, bits, 1, static_cast<int64_t>(count), 1);
  }
}

}  // namespace

int main() {
  const int64_t row_counts[] = {1, 2, 3, 16, 33};
  const int64_t row_sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 25, 27, 31, 32, 33, 49, 63, 64, 65, 127, 480, 481};
  const int64_t group_sizes[] = {1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 128, 1000};
  for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
    for (const int64_t rows : row_counts) {
      for (const int64_t row_size : row_sizes) {
        for (const int64_t group_size : group_sizes) {
          check(bits, rows, row_size, group_size, 0);
          if (rows == 3) check(bits, rows, row_size, group_size, 1 + rng() % 20);
          if (rows >= 3) check_codes(bits, rows, row_size, group_size, rng() % 2 * (rng() % 20));
        }
      }
    }
    check(bits, 1, 1000003, 32, 0);
    check(bits, 1, 1000003, 1000003, 0);
    check(bits, 1000003, 1, 32, 0);
    check(bits, 5003, 9, 8, 0);
    check(bits, 5003, 25, 16, 0);
    check(bits, 1024, 1024, 32, 0);
  }
  for (int bits = 2; bits <= 5; ++bits) {
    for (const size_t count : {1, 2, 3, 17, 100}) check_trellis(bits, count, -1, -1);
    for (const size_t count : {17, 100}) check_trellis(bits, count, 4095, 1234);
    for (const int64_t rows : {1, 3, 7, 8, 15, 16, 33, 64, 65, 130}) {
      for (const int64_t columns : {1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 130}) {
        check_stream(bits, rows, columns, 0);
        check_stream(bits, rows, columns, 1 + rng() % 20);
      }
    }
  }
  std::printf("%ld checks, %ld wrong; instruction sets:", cases, failures);
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (isa_supported(isa)) std::printf(" %s", isa_name(isa));
  }
  std::printf("\n");
  return failures == 0 ? 0 : 1;
}
