#include "layout.h"

#include <limits>

namespace onnxq {

const char* status_text(int status) {
  switch (status) {
    case kOk:
      return "no error";
    case kBadBits:
      return "bits must be 2 to 8";
    case kBadGroupSize:
      return "group_size must be at least 1";
    case kBadShape:
      return "shape must have at least one axis and only positive sizes";
    case kTooLarge:
      return "shape holds more values than this machine can address";
    case kPackedTooShort:
      return "packed holds too few bytes for shape and bits";
    case kExponentsTooShort:
      return "exponents hold too few bytes for shape and group_size";
    case kScalesTooShort:
      return "scale and zero_point must hold one number for each group";
    case kBadExponentBase:
      return "exponent_base must be -126 to 97 - bits";
    case kBadScale:
      return "scale must be finite";
    case kOutputTooShort:
      return "the output holds too few values for shape";
    case kBadIsa:
      return "this instruction set is unknown, or this processor or library has not got it";
    case kNullPointer:
      return "a pointer is null";
    case kBadTrellisBits:
      return "a trellis has 2 to 5 bits";
    case kNoMemory:
      return "there is no memory for the paths of so many values";
    case kRowsTooShort:
      return "scale and fits must have room for one number for each row";
    default:
      return "unknown error";
  }
}

Status make_layout(int64_t bits, int64_t rows, int64_t row_size, int64_t group_size, Layout* layout) {
  if (bits < kMinBits || bits > kMaxBits) return kBadBits;
  if (group_size < 1) return kBadGroupSize;
  if (rows < 1 || row_size < 1) return kBadShape;
  // Bounds both the bit counts (at most 8 a value) and the float bytes, and leaves room for roundings up.
  const uint64_t bytes = std::numeric_limits<size_t>::max() < std::numeric_limits<uint64_t>::max()
                             ? static_cast<uint64_t>(std::numeric_limits<size_t>::max())
                             : static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const uint64_t most = bytes / 16;
  const auto r = static_cast<uint64_t>(rows);
  const auto k = static_cast<uint64_t>(row_size);
  if (k > most || r > most / k) return kTooLarge;
  const uint64_t g = static_cast<uint64_t>(group_size) < k ? static_cast<uint64_t>(group_size) : k;
  layout->bits = static_cast<int>(bits);
  layout->row_size = k;
  layout->group_size = g;
  layout->values = r * k;
  layout->groups = r * ((k + g - 1) / g);
  layout->packed_bytes = (layout->values * static_cast<uint64_t>(bits) + 7) / 8;
  layout->exponent_bytes = (layout->groups * kExponentBits + 7) / 8;
  return kOk;
}

Status make_layout(int64_t bits, const int64_t* shape, size_t rank, int64_t group_size, Layout* layout) {
  if (rank == 0 || shape == nullptr) return kBadShape;
  int64_t row_size = 1;
  for (size_t axis = 0; axis < rank; ++axis) {
    if (shape[axis] < 1) return kBadShape;
    if (axis == 0) continue;
    if (row_size > std::numeric_limits<int64_t>::max() / shape[axis]) return kTooLarge;
    row_size *= shape[axis];
  }
  return make_layout(bits, shape[0], row_size, group_size, layout);
}

Status check_buffers(const Layout& layout, const uint8_t* packed, size_t packed_bytes, const void* out,
                     size_t out_count) {
  if (packed == nullptr || out == nullptr) return kNullPointer;
  if (packed_bytes < layout.packed_bytes) return kPackedTooShort;
  return out_count < layout.values ? kOutputTooShort : kOk;
}

Status check_exponent_base(int64_t base, int bits) {
  return base >= -126 && base <= 128 - kTopExponent - bits ? kOk : kBadExponentBase;
}

}  // namespace onnxq
