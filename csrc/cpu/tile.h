// How CPU kernels walk an example. A tile is a run of neighbouring pixels of one channel, four per lane: a vector of
// Philox blocks, one a lane, yields the normals of one tile. Sixteen tiles are a chunk, the unit of work handed to a
// thread. Chunks are cut by the shape alone, so sums over them do not depend on threads.
#pragma once

#include "vector.h"  // before the formulas (math/lanes.h says why)

#include "../kernels.h"
#include "../math/half.h"
#include "../math/random.h"

namespace adt {
inline namespace ADT_ISA {

constexpr int kTilesPerChunk = 16;

template <class V> constexpr int kTilePixels = kNormalsPerBlock * Lanes<V>::kCount;

// Four vectors: the values of a tile, in pixel order.
template <class V> using TileValues = V[4];

// The element type a vector is made of.
template <class V> struct ScalarOf {
  using type = double;
};
template <> struct ScalarOf<Floats> {
  using type = float;
};
template <class V> using Scalar = typename ScalarOf<V>::type;

struct Tile {
  int64_t offset;        // of its first element within the example
  int64_t stride;        // between pixels: 1, or C when channels_last
  int pixels;            // at most kTilePixels; fewer at the end of a channel
  uint32_t first_block;  // Philox block of its first four pixels; the next four are C blocks on
};

template <class V> struct Tiling {
  Shape shape;
  int64_t tiles_per_channel, tiles, chunks;

  explicit Tiling(const Shape& s)
      : shape(s),
        tiles_per_channel((s.pixels + kTilePixels<V> - 1) / kTilePixels<V>),
        tiles(tiles_per_channel * s.channels),
        chunks((tiles + kTilesPerChunk - 1) / kTilesPerChunk) {}

  // Tiles are numbered in the order of memory: along a channel, or across channels when channels_last.
  Tile tile(int64_t index) const {
    const int64_t channel = shape.channels_last ? index % shape.channels : index / tiles_per_channel;
    const int64_t along = shape.channels_last ? index / shape.channels : index % tiles_per_channel;
    const int64_t first = along * kTilePixels<V>, left = shape.pixels - first;
    return {shape.channels_last ? first * shape.channels + channel : channel * shape.pixels + first,
            shape.channels_last ? shape.channels : 1, static_cast<int>(left < kTilePixels<V> ? left : kTilePixels<V>),
            static_cast<uint32_t>(first / kNormalsPerBlock * shape.channels + channel)};
  }
};

// A thread's share: some tiles of one example.
struct Chunk {
  int64_t example, index;  // which example, and which of its chunks
  int tiles;
  Tile tile[kTilesPerChunk];

  int64_t pixels() const {
    int64_t sum = 0;
    for (int t = 0; t < tiles; ++t) sum += tile[t].pixels;
    return sum;
  }
};

template <class V> Chunk chunk_of_item(const Tiling<V>& tiling, int64_t item) {
  Chunk chunk{item / tiling.chunks, item % tiling.chunks, 0, {}};
  for (int64_t first = chunk.index * kTilesPerChunk; chunk.tiles < kTilesPerChunk; ++chunk.tiles) {
    if (first + chunk.tiles == tiling.tiles) break;
    chunk.tile[chunk.tiles] = tiling.tile(first + chunk.tiles);
  }
  return chunk;
}

// One TileValues for each tile of a chunk.
template <class V> using ChunkValues = TileValues<V>[kTilesPerChunk];

// Whole-vector loads and stores at any alignment.
ADT_INLINE Floats load_vector(const float* p, Floats) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// 16-bit types. Instructions are named where GCC would take four for one; the processor's own conversions of float16
// give the bits of math/half.h, but for the payload of a NaN.
ADT_INLINE Uints load_words(const uint16_t* p) {
  ShortUints shorts;
  __builtin_memcpy(&shorts, p, sizeof shorts);
#if defined(__AVX512F__)
  return bit_cast<Uints>(_mm512_maskz_cvtepu16_epi32(0xffff, bit_cast<__m256i>(shorts)));
#else
  return __builtin_convertvector(shorts, Uints);
#endif
}
ADT_INLINE Floats load_vector(const bfloat16* p, Floats) {
  return from_bfloat16_bits<Floats>(load_words(reinterpret_cast<const uint16_t*>(p)));
}
ADT_INLINE Floats load_vector(const float16* p, Floats) {
#if defined(__AVX512F__)
  __m256i shorts;
  __builtin_memcpy(&shorts, p, sizeof shorts);
  return bit_cast<Floats>(_mm512_maskz_cvtph_ps(0xffff, shorts));
#elif defined(__F16C__)
  __m128i shorts;
  __builtin_memcpy(&shorts, p, sizeof shorts);
  return bit_cast<Floats>(_mm256_cvtph_ps(shorts));
#else
  return from_float16_bits<Floats>(load_words(reinterpret_cast<const uint16_t*>(p)));
#endif
}
ADT_INLINE double load_vector(const double* p, double) { return *p; }

ADT_INLINE void store_vector(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }
ADT_INLINE void store_words(uint16_t* p, Uints words) {
#if defined(__AVX512F__)
  const __m256i shorts = _mm512_maskz_cvtepi32_epi16(0xffff, bit_cast<__m512i>(words));
#else
  const ShortUints shorts = __builtin_convertvector(words, ShortUints);
#endif
  __builtin_memcpy(p, &shorts, sizeof shorts);
}
ADT_INLINE void store_vector(bfloat16* p, Floats v) {
  store_words(reinterpret_cast<uint16_t*>(p), bfloat16_bits<Uints>(v));
}
ADT_INLINE void store_vector(float16* p, Floats v) {
#if defined(__AVX512F__)
  const __m256i shorts = _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &shorts, sizeof shorts);
#elif defined(__F16C__)
  const __m128i shorts = _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &shorts, sizeof shorts);
#else
  store_words(reinterpret_cast<uint16_t*>(p), float16_bits<Uints>(v));
#endif
}
ADT_INLINE void store_vector(double* p, double v) { *p = v; }

template <class V, class S> ADT_INLINE void load_tile(const S* example, const Tile& tile, TileValues<V>& out) {
  constexpr int kWidth = Lanes<V>::kCount;
  const S* p = example + tile.offset;
  if (tile.stride == 1 && tile.pixels == kTilePixels<V>) {
    for (int i = 0; i < 4; ++i) out[i] = load_vector(p + i * kWidth, V{});
    return;
  }
  Scalar<V> values[kTilePixels<V>] = {};
  for (int i = 0; i < tile.pixels; ++i) values[i] = load_as(p + i * tile.stride, Scalar<V>{});
  __builtin_memcpy(&out, values, sizeof values);
}

template <class V, class S> ADT_INLINE void store_tile(S* example, const Tile& tile, const TileValues<V>& in) {
  constexpr int kWidth = Lanes<V>::kCount;
  S* p = example + tile.offset;
  if (tile.stride == 1 && tile.pixels == kTilePixels<V>) {
    for (int i = 0; i < 4; ++i) store_vector(p + i * kWidth, in[i]);
    return;
  }
  Scalar<V> values[kTilePixels<V>];
  __builtin_memcpy(values, &in, sizeof values);
  for (int i = 0; i < tile.pixels; ++i) store_as(p + i * tile.stride, values[i]);
}

template <class V>
ADT_INLINE PhiloxWords<UintOf<V>> tile_words(const Tile& tile, int64_t channels, const NoiseRow& row) {
  return philox_block(lane_numbers<V>() * static_cast<uint32_t>(channels) + tile.first_block, row);
}

// The normals of one sample of a chunk. From block numbers to x_adv is one long chain of dependent operations. Taken in
// stages over the chunk, each a loop of independent turns, the processor has several in flight.
template <class V>
ADT_INLINE void chunk_normals(const Chunk& chunk, int64_t channels, const NoiseRow& row, ChunkValues<V>& out) {
  PhiloxWords<UintOf<V>> words[kTilesPerChunk];
  for (int t = 0; t < chunk.tiles; ++t) words[t] = tile_words<V>(chunk.tile[t], channels, row);
  for (int t = 0; t < chunk.tiles; ++t) {
    const Normals<V> normals = box_muller<V>(words[t]);
    for (int i = 0; i < 4; ++i) out[t][i] = normals.lane[i];
    interleave_planes(out[t]);
  }
}

// A stream's rows, read from the state tensor.
ADT_INLINE NoiseRow row_of(const Noise& noise, int64_t draw, int64_t sample, int64_t example) {
  return noise_row(static_cast<uint64_t>(noise.state[0]), static_cast<uint64_t>(noise.state[1] + draw), sample,
                   noise.first_example + example);
}

}  // namespace ADT_ISA
}  // namespace adt
