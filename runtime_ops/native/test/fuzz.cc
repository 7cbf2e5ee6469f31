// libFuzzer harness: any bytes become the sizes, attributes and buffers of a weight. What is refused must be
// refused; what is accepted must come out of every kernel with the reference's bits; memory is the sanitizers' part.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../decode.h"
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

  std::vector<float> wished;
  const auto run = [&](const auto& weight, bool acceptable, const auto& fill_wished) {
    if (acceptable) {
      wished.resize(static_cast<size_t>(layout.values));
      fill_wished(wished.data());
    }
    for (int i = -1; i <= kIsaCount; ++i) {
      if (i != isa && i != kBestIsa && !isa_supported(i)) continue;
      std::unique_ptr<float[]> out(new float[out_count]);
      const Status found = decode(weight, out.get(), out_count, i);
      require((found == kOk) == (acceptable && (i == kBestIsa || isa_supported(i))));
      if (found != kOk) continue;
      require(std::memcmp(out.get(), wished.data(), wished.size() * sizeof(float)) == 0);
    }
  };
  const bool room = out_count >= layout.values && packed_bytes >= layout.packed_bytes;
  const reference::Sizes sizes{layout.bits, layout.values / layout.row_size, layout.row_size, layout.group_size};

  const GseWeight one{layout, packed.get(), packed_bytes, exponents.get(), exponent_bytes, static_cast<int>(base)};
  run(one, room && exponent_bytes >= layout.exponent_bytes && base_status == kOk,
      [&](float* values) { reference::gse(packed.get(), exponents.get(), sizes, static_cast<int>(base), values); });

  bool finite = groups >= layout.groups;
  for (size_t i = 0; finite && i < layout.groups; ++i) finite = (scale[i] & 0x7C00) != 0x7C00;
  const AffineWeight two{layout, packed.get(), packed_bytes, scale.get(), zero_point.get(), groups};
  run(two, room && finite,
      [&](float* values) { reference::affine(packed.get(), scale.get(), zero_point.get(), sizes, values); });
  return 0;
}
