#include "trellis.h"

#include <memory>
#include <new>

namespace onnxq {
namespace {

size_t best_end(const float* costs, size_t prefixes, int end) {
  const size_t kept = static_cast<size_t>(end) & (prefixes - 1);
  size_t best = end < 0 ? 0 : kept;
  for (size_t window = best; window < kStates; window += end < 0 ? 1 : prefixes) {
    if (costs[window] < costs[best]) best = window;
  }
  return best;
}

}  // namespace

Status trellis_path(const Chain& chain, int end, uint16_t* path, int isa) {
  if (chain.bits < kMinTrellisBits || chain.bits > kMaxTrellisBits) return kBadTrellisBits;
  if (chain.count == 0) return kOk;
  if (chain.values == nullptr || chain.weights == nullptr || chain.levels == nullptr || path == nullptr) {
    return kNullPointer;
  }
  Isa found;
  const Status status = resolve_isa(isa, &found);
  if (status != kOk) return status;
  const size_t prefixes = kStates >> chain.bits, branches = size_t{1} << chain.bits;
  if (chain.count > static_cast<size_t>(-1) / sizeof(float) / kStates) return kTooLarge;
  const std::unique_ptr<float[]> least(new (std::nothrow) float[chain.count * prefixes]);
  const std::unique_ptr<float[]> costs(new (std::nothrow) float[kStates]);
  if (!least || !costs) return kNoMemory;
  kernel_of(found)->trellis(chain, least.get(), costs.get());
  size_t window = best_end(costs.get(), prefixes, end);
  for (size_t t = chain.count; t-- > 0;) {
    path[t] = static_cast<uint16_t>(window);
    if (t == 0) break;
    const float* const before = least.get() + (t - 1) * prefixes;
    const size_t kept = window >> chain.bits;
    float lowest = 0.0f;
    for (size_t h = 0; h < branches; ++h) {
      const size_t state = h * prefixes + kept;
      const float error = chain.values[t - 1] - chain.levels[state];
      const float cost = before[state >> chain.bits] + error * error * chain.weights[t - 1];
      if (h == 0 || cost < lowest) {
        lowest = cost;
        window = state;
      }
    }
  }
  return kOk;
}

namespace {

// A kernel and its stream, for a weight that is found to be whole.
Status begin(const TrellisWeight& weight, size_t out_count, int isa, TrellisStream* stream, const Kernel** kernel) {
  if (weight.bits < kMinTrellisBits || weight.bits > kMaxTrellisBits) return kBadTrellisBits;
  Layout layout;  // for its checks of the shape
  const Status shape = make_layout(weight.bits, weight.rows, weight.columns, 1, &layout);
  if (shape != kOk) return shape;
  if (weight.packed == nullptr || weight.levels == nullptr) return kNullPointer;
  const auto values = static_cast<size_t>(layout.values);
  if (weight.packed_bytes < ((values + 7) / 8 + 1) * static_cast<size_t>(weight.bits)) return kPackedTooShort;
  if (out_count < values) return kOutputTooShort;
  Isa found;
  const Status status = resolve_isa(isa, &found);
  if (status != kOk) return status;
  *kernel = kernel_of(found);
  const auto rows = static_cast<size_t>(weight.rows), columns = static_cast<size_t>(weight.columns);
  *stream = {weight.packed, weight.packed_bytes, weight.bits, rows, columns, weight.levels};
  return kOk;
}

}  // namespace

Status decode(const TrellisWeight& weight, const float* scale, float* out, size_t out_count, int isa) {
  TrellisStream stream;
  const Kernel* kernel = nullptr;
  const Status status = begin(weight, out_count, isa, &stream, &kernel);
  if (status != kOk) return status;
  if (scale == nullptr || out == nullptr) return kNullPointer;
  kernel->trellis_values(stream, scale, out);
  return kOk;
}

Status decode_codes(const TrellisWeight& weight, int8_t* out, size_t out_count, int isa) {
  TrellisStream stream;
  const Kernel* kernel = nullptr;
  const Status status = begin(weight, out_count, isa, &stream, &kernel);
  if (status != kOk) return status;
  if (out == nullptr) return kNullPointer;
  kernel->trellis_codes(stream, out);
  return kOk;
}

}  // namespace onnxq
