// libFuzzer harness: any bytes become the sizes, attributes and buffers of a weight. What is refused must be
// refused; what is accepted must come out of every kernel with the reference's bits; memory is the sanitizers' part.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../codes.h"
#include "../decode.h"
#include "../trellis.h"
#include "reference.h"

namespace {

using namespace onnxq;

constexpr uint64_t kMostValues = 1 << 11;

void require(bool fact) {
  if (!fact) std::abort();
}

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }

  // Small numbers mostly, as models have them; now and then any 64 bits.
  int64_t number() {
    const uint8_t kind = byte();
    if (kind < 200) return kind;
    if (kind < 230) return byte() | byte() << 8;
    if (kind < 240) return -static_cast<int64_t>(byte());
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<int64_t>(value);
  }

  // Memory of exactly `count` items of its own.
  template <class T>
  std::unique_ptr<T[]> take(size_t count) {
    std::unique_ptr<T[]> items(new T[count]);
    auto* to = reinterpret_cast<uint8_t*>(items.get());
    for (size_t i = 0; i < count * sizeof(T); ++i) to[i] = byte();
    return items;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// `wished` bytes, or a few less or more.
size_t about(uint64_t wished, uint8_t kind) {
  const uint64_t size = wished < 4 * kMostValues ? wished : 4 * kMostValues;
  if (kind < 160) return static_cast<size_t>(size);
  if (kind < 200) return static_cast<size_t>(size) + kind - 160;
  return static_cast<size_t>(size > kind - 200u ? size - (kind - 200u) : 0);
}

// Decodes on every instruction set of this machine and on `isa`, each time into memory of its own: refused exactly if
// it is not acceptable, and otherwise the same bits as `wished`.
template <class T, class Decode>
void require_same(const std::vector<T>& wished, size_t count, bool acceptable, int isa, const Decode& decode_into) {
  for (int i = -1; i <= kIsaCount; ++i) {
    if (i != isa && i != kBestIsa && !isa_supported(i)) continue;
    std::unique_ptr<T[]> out(new T[count]);
    const Status found = decode_into(out.get(), i);
    require((found == kOk) == (acceptable && (i == kBestIsa || isa_supported(i))));
    if (found == kOk) require(std::memcmp(out.get(), wished.data(), wished.size() * sizeof(T)) == 0);
  }
}

// Rows of int8 codes. Whether a row fits is as much a result as its codes, and a scale belongs to those that do.
template <class Decode>
void require_rows(const std::vector<int8_t>& codes, const std::vector<uint8_t>& fits, const std::vector<float>& scale,
                  size_t count, size_t rows, bool acceptable, int isa, const Decode& decode_into) {
  require_same(codes, count, acceptable, isa, [&](int8_t* out, int set) {
    std::unique_ptr<uint8_t[]> found(new uint8_t[rows]);
    std::unique_ptr<float[]> steps(new float[rows]);
    const Status status = decode_into(CodeRows{out, count, found.get(), rows}, steps.get(), set);
    if (status == kOk) require(std::memcmp(found.get(), fits.data(), fits.size()) == 0);
    for (size_t i = 0; status == kOk && i < scale.size(); ++i) require(fits[i] == 0 || steps[i] == scale[i]);
    return status;
  });
}

void check_trellis(const Layout& layout, Bytes* bytes, int isa) {
  const auto values = static_cast<size_t>(layout.values), rows = values / static_cast<size_t>(layout.row_size);
  const size_t needed = ((values + 7) / 8 + 1) * static_cast<size_t>(layout.bits);
  const size_t packed_bytes = about(needed, bytes->byte()), out_count = about(values, bytes->byte());
  const auto packed = bytes->take<uint8_t>(packed_bytes);
  std::unique_ptr<int8_t[]> levels(new int8_t[kStates]);
  static const std::vector<int8_t> table = [] {
    std::vector<int8_t> made(kStates + 256);
    for (size_t i = 0; i < made.size(); ++i) made[i] = static_cast<int8_t>(i * 31);
    return made;
  }();
  std::memcpy(levels.get(), table.data() + bytes->byte(), kStates);
  const bool acceptable = layout.bits <= kMaxTrellisBits && packed_bytes >= needed && out_count >= values;
  const std::vector<float> scale(acceptable ? rows : 1, 0.25f);
  std::vector<int8_t> codes;
  std::vector<float> floats;
  if (acceptable) {
    codes.resize(values);
    reference::trellis(packed.get(), levels.get(), {layout.bits, rows, layout.row_size, 1}, codes.data());
    for (const int8_t code : codes) floats.push_back(static_cast<float>(code) * 0.25f);
  }
  const auto height = static_cast<int64_t>(rows), width = static_cast<int64_t>(layout.row_size);
  const TrellisWeight weight{packed.get(), packed_bytes, levels.get(), layout.bits, height, width};
  require_same(codes, out_count, acceptable, isa,
               [&](int8_t* out, int set) { return decode_codes(weight, out, out_count, set); });
  require_same(floats, out_count, acceptable, isa,
               [&](float* out, int set) { return decode(weight, scale.data(), out, out_count, set); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const int64_t bits = bytes.byte() < 240 ? 2 + bytes.byte() % 7 : bytes.number();
  const int64_t group_size = bytes.number();
  const size_t rank = bytes.byte() % 6;
  int64_t shape[6] = {};
  for (size_t axis = 0; axis < rank; ++axis) shape[axis] = bytes.number();

  // Two ways to the same layout: from a tensor's shape, as the operators have it, and from rows, as C has it.
  Layout layout;
  const Status status = make_layout(bits, shape, rank, group_size, &layout);
  if (status == kOk) {
    int64_t row_size = 1;
    for (size_t axis = 1; axis < rank; ++axis) row_size *= shape[axis];
    Layout again;
    require(make_layout(bits, shape[0], row_size, group_size, &again) == kOk);
    require(again.values == layout.values && again.groups == layout.groups);
    require(layout.values / layout.row_size == static_cast<uint64_t>(shape[0]));
    require(layout.packed_bytes <= layout.values && layout.groups <= layout.values);
    require(layout.group_size >= 1 && layout.group_size <= layout.row_size);
  }
  require(status_text(status) != nullptr);
  if (status != kOk) return 0;

  const int64_t base = bytes.byte() < 200 ? -126 + bytes.byte() % (224 - layout.bits) : bytes.number();
  const Status base_status = check_exponent_base(base, layout.bits);
  if (base_status != kOk && (base < INT32_MIN || base > INT32_MAX)) return 0;

  const size_t out_count = about(layout.values, bytes.byte());
  const size_t packed_bytes = about(layout.packed_bytes, bytes.byte());
  const size_t exponent_bytes = about(layout.exponent_bytes, bytes.byte());
  const size_t groups = about(layout.groups, bytes.byte());
  const int isa = static_cast<int8_t>(bytes.byte()) % 6;
  const auto exponents = bytes.take<uint8_t>(exponent_bytes);
  const auto scale = bytes.take<uint16_t>(groups);
  const auto zero_point = bytes.take<int8_t>(groups);
  const auto packed = bytes.take<uint8_t>(packed_bytes);

  const bool room = out_count >= layout.values && packed_bytes >= layout.packed_bytes;
  const reference::Sizes sizes{layout.bits, layout.values / layout.row_size, layout.row_size, layout.group_size};
  const auto rows = static_cast<size_t>(sizes.rows), row_count = about(rows, bytes.byte());
  const int step = static_cast<int>(base);
  const auto values = room ? static_cast<size_t>(layout.values) : 0;  // what memory was given for
  std::vector<float> floats(values), steps(room ? rows : 0);
  std::vector<int8_t> codes(values);
  std::vector<uint8_t> fits(room ? rows : 0);

  const GseWeight one{layout, packed.get(), packed_bytes, exponents.get(), exponent_bytes, step};
  bool acceptable = room && exponent_bytes >= layout.exponent_bytes && base_status == kOk;
  if (acceptable) {
    reference::gse(packed.get(), exponents.get(), sizes, step, floats.data());
    reference::gse_codes(packed.get(), exponents.get(), sizes, step, codes.data(), steps.data(), fits.data());
  }
  require_same(floats, out_count, acceptable, isa,
               [&](float* out, int set) { return decode(one, out, out_count, set); });
  require_rows(codes, fits, steps, out_count, row_count, acceptable && row_count >= rows, isa,
               [&](const CodeRows& out, float* scales, int set) { return decode_codes(one, out, scales, set); });

  const AffineWeight two{layout, packed.get(), packed_bytes, scale.get(), zero_point.get(), groups};
  acceptable = room && groups >= layout.groups;
  bool finite = acceptable;
  for (size_t i = 0; finite && i < layout.groups; ++i) finite = (scale[i] & 0x7C00) != 0x7C00;
  if (acceptable) {
    if (finite) reference::affine(packed.get(), scale.get(), zero_point.get(), sizes, floats.data());
    reference::affine_codes(packed.get(), zero_point.get(), sizes, codes.data(), fits.data());
  }
  require_same(floats, out_count, finite, isa, [&](float* out, int set) { return decode(two, out, out_count, set); });
  require_rows(codes, fits, {}, out_count, row_count, acceptable && row_count >= rows, isa,
               [&](const CodeRows& out, float*, int set) { return decode_codes(two, out, set); });
  check_trellis(layout, &bytes, isa);
  return 0;
}
