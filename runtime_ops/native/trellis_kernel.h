// The part of a kernel (kernel.h) that trellises need: Viterbi's forward pass, and the values of a stream.
#pragma once

#include <string.h>

#include "kernel_types.h"

// A short loop that is written out is no loop any more that a compiler would make a vector of.
#if defined(__clang__)
#define ONNXQ_KEEP_LOOP _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define ONNXQ_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define ONNXQ_KEEP_LOOP
#endif

namespace onnxq {
namespace {

// More than any sum of costs: an infinity less an infinity would be no number.
constexpr float kUnreachable = 1e30f;

// Plain loops that compilers turn into vectors of this file's instruction set. No sum is reordered and nothing is
// contracted, so that every set finds the same path.
template <int kBits>
void trellis_forward(const Chain& chain, float* __restrict least, float* __restrict costs) {
  constexpr size_t kPrefixes = kStates >> kBits, kBranches = size_t{1} << kBits, kSteps = kPrefixes / kBranches;
  const float* const __restrict levels = chain.levels;
  for (size_t p = 0; p < kPrefixes; ++p) least[p] = chain.start < 0 ? 0.0f : kUnreachable;
  if (chain.start >= 0) least[static_cast<size_t>(chain.start) & (kPrefixes - 1)] = 0.0f;
  for (size_t t = 0; t + 1 < chain.count; ++t) {
    const float* const __restrict before = least + t * kPrefixes;
    float* const __restrict after = least + (t + 1) * kPrefixes;
    const float value = chain.values[t], weight = chain.weights[t];
    // The windows whose lower bits are q * kBranches + b, by their upper bits h; their prefix is h * kSteps + q.
    for (size_t q = 0; q < kSteps; ++q) {
      float best[kBranches];
      for (size_t b = 0; b < kBranches; ++b) best[b] = kUnreachable;
      for (size_t h = 0; h < kBranches; ++h) {
        const float* const level = levels + h * kPrefixes + q * kBranches;
        const float reached = before[h * kSteps + q];
        ONNXQ_KEEP_LOOP
        for (size_t b = 0; b < kBranches; ++b) {
          const float error = value - level[b];
          const float cost = reached + error * error * weight;
          best[b] = cost < best[b] ? cost : best[b];
        }
      }
      memcpy(after + q * kBranches, best, sizeof best);
    }
    float lowest[16];  // sixteen at a time, since one running minimum would be a chain of dependent steps
    memcpy(lowest, after, sizeof lowest);
    for (size_t p = 16; p < kPrefixes; p += 16) {
      for (size_t i = 0; i < 16; ++i) lowest[i] = after[p + i] < lowest[i] ? after[p + i] : lowest[i];
    }
    float bottom = lowest[0];
    for (size_t i = 1; i < 16; ++i) bottom = lowest[i] < bottom ? lowest[i] : bottom;
    for (size_t p = 0; p < kPrefixes; ++p) after[p] -= bottom;
  }
  const float* const __restrict before = least + (chain.count - 1) * kPrefixes;
  const float value = chain.values[chain.count - 1], weight = chain.weights[chain.count - 1];
  for (size_t window = 0; window < kStates; ++window) {
    const float error = value - levels[window];
    costs[window] = before[window >> kBits] + error * error * weight;
  }
}

inline void trellis_pass(const Chain& chain, float* least, float* costs) {
  switch (chain.bits) {
    case 2:
      return trellis_forward<2>(chain, least, costs);
    case 3:
      return trellis_forward<3>(chain, least, costs);
    case 4:
      return trellis_forward<4>(chain, least, costs);
    default:
      return trellis_forward<5>(chain, least, costs);
  }
}

// Windows [first, first + rows) of a stream, rows <= kTileRows; whole vectors of them are written.
template <class V>
void read_windows(const TrellisStream& stream, size_t first, size_t rows, uint16_t* windows) {
  const auto bits = static_cast<size_t>(stream.bits);
  const size_t bit = first * bits, left = stream.bytes - bit / 8, step = V::kWidth / 8 * bits;
  const uint8_t* source = stream.data + bit / 8;
  const auto plan = V::plan(window_table_of(stream.bits).lanes[bit & 7]);
  // As many vectors as cover the rows, and of those the ones that read no byte beyond the stream.
  size_t vectors = left < V::kLoadBytes ? 0 : (left - V::kLoadBytes) / step + 1;
  if (vectors > (rows + V::kWidth - 1) / V::kWidth) vectors = (rows + V::kWidth - 1) / V::kWidth;
  size_t row = 0;
  for (; vectors > 0; --vectors, row += V::kWidth, source += step) V::store(windows + row, V::windows(source, plan));
  for (; row < rows; ++row) {
    const size_t at = (first + row) * bits;
    const uint8_t* const byte = stream.data + at / 8;
    const unsigned word = static_cast<unsigned>(byte[0]) << 16 | static_cast<unsigned>(byte[1]) << 8 | byte[2];
    windows[row] = static_cast<uint16_t>((word >> (24 - kWindow - at % 8)) & (kStates - 1));
  }
}

// The levels of a stretch of one column. Looking up one by one is no slower than gathering.
template <class V>
void read_levels(const TrellisStream& stream, size_t first, size_t rows, int8_t* __restrict codes) {
  alignas(64) uint16_t windows[kTileRows];
  read_windows<V>(stream, first, rows, windows);
  const int8_t* const __restrict levels = stream.levels;
  size_t row = 0;
  for (; row + 8 <= rows; row += 8) {
    for (size_t i = 0; i < 8; ++i) codes[row + i] = levels[windows[row + i]];
  }
  for (; row < rows; ++row) codes[row] = levels[windows[row]];
}

// tile: `columns` columns, kTileRows apart; out: their `rows` rows, `stride` apart.
template <class V>
void turn_tile(const int8_t* tile, size_t rows, size_t columns, int8_t* out, size_t stride) {
  const size_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (size_t row = 0; row < whole_rows; row += 8) {
    for (size_t column = 0; column < whole_columns; column += 8) {
      V::turn(tile + column * kTileRows + row, kTileRows, out + row * stride + column, stride);
    }
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = row < whole_rows ? whole_columns : 0; column < columns; ++column) {
      out[row * stride + column] = tile[column * kTileRows + row];
    }
  }
}

template <class V>
void scale_row(const int8_t* codes, size_t count, float scale, float* out) {
  const auto factor = V::broadcast(scale);
  size_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    V::store(out + i, V::multiply(V::converted(V::load(codes + i)), factor));
  }
  for (; i < count; ++i) out[i] = static_cast<float>(codes[i]) * scale;
}

// The chain runs down the columns and the weight lies in rows, so that tiles which stay in the cache are turned over.
// put(tile, row, column, rows, columns) takes each of them.
template <class V, class Put>
void each_tile(const TrellisStream& stream, Put put) {
  alignas(64) int8_t tile[kTileRows * kTileColumns];
  for (size_t top = 0; top < stream.rows; top += kTileRows) {
    const size_t rows = stream.rows - top < kTileRows ? stream.rows - top : kTileRows;
    for (size_t first = 0; first < stream.columns; first += kTileColumns) {
      const size_t columns = stream.columns - first < kTileColumns ? stream.columns - first : kTileColumns;
      for (size_t column = 0; column < columns; ++column) {
        read_levels<V>(stream, (first + column) * stream.rows + top, rows, tile + column * kTileRows);
      }
      put(tile, top, first, rows, columns);
    }
  }
}

template <class V>
void trellis_codes(const TrellisStream& stream, int8_t* out) {
  const size_t stride = stream.columns;
  each_tile<V>(stream, [=](const int8_t* tile, size_t row, size_t column, size_t rows, size_t columns) {
    turn_tile<V>(tile, rows, columns, out + row * stride + column, stride);
  });
}

template <class V>
void trellis_values(const TrellisStream& stream, const float* scale, float* out) {
  const size_t stride = stream.columns;
  each_tile<V>(stream, [=](const int8_t* tile, size_t row, size_t column, size_t rows, size_t columns) {
    alignas(64) int8_t codes[kTileRows * kTileColumns];
    turn_tile<V>(tile, rows, columns, codes, kTileColumns);
    for (size_t i = 0; i < rows; ++i) {
      scale_row<V>(codes + i * kTileColumns, columns, scale[row + i], out + (row + i) * stride + column);
    }
  });
}

}  // namespace
}  // namespace onnxq
