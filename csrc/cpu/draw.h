// Drawing samples from a chunk whose (x, mu, sigma) are at hand: shared by sampling and by step-and-sample.
#pragma once

#include "tile.h"

#include "../math/tanh_gaussian.h"

namespace adt {
inline namespace ADT_ISA {

// What the k samples of a chunk have in common, kept in the first-level cache while they are drawn.
template <class V> struct PreparedChunk {
  ChunkValues<V> x, mu, sigma;
  V log_sigma{};  // summed over the chunk, lane by lane
};

// Lanes beyond the last pixel of a tile count for nothing in a sum (and for one in a product).
template <class V> ADT_INLINE V masked(V value, int vector, const Tile& tile, double otherwise) {
  const int left = tile.pixels - vector * Lanes<V>::kCount;
  return lane_numbers<V>() < static_cast<uint32_t>(left > 0 ? left : 0) ? value : splat<V>(otherwise);
}

template <bool kLogOffset, class V>
ADT_INLINE void add_log_scale(PreparedChunk<V>& prepared, int t, const Tile& tile, const TileValues<V>& rho,
                              V log_offset) {
  for (int i = 0; i < 4; ++i) {
    prepared.log_sigma += masked(log_scale<kLogOffset>(prepared.sigma[t][i], rho[i], log_offset), i, tile, 0.0);
  }
}

// Fills in what comes of rho.
template <class V>
ADT_INLINE void set_scale(PreparedChunk<V>& prepared, int t, const Tile& tile, const TileValues<V>& rho, bool density,
                          double log_offset) {
  for (int i = 0; i < 4; ++i) prepared.sigma[t][i] = softplus<V>(rho[i]).sigma;
  if (!density) return;
  if (has_offset<Scalar<V>>(log_offset)) {
    add_log_scale<true>(prepared, t, tile, rho, splat<V>(log_offset));
  } else {
    add_log_scale<false>(prepared, t, tile, rho, V{});
  }
}

// One sample of a chunk. Returns the sample's own part of -log p: with an offset the
//   sum of r^2/2 + log(1 - t^2 + o),
// whose factors near o would underflow in a product, and without the
//   sum of r^2/2 - 2 |u| - 2 log(1 + exp(-2|u|)),
// where the logarithms of up to 64 factors in (1, 2] are taken as the logarithm of their product.
template <bool kDensity, bool kLogOffset, class V, class S>
ADT_INLINE double draw_sample(const Chunk& chunk, int64_t channels, const PreparedChunk<V>& prepared, const Ball& ball,
                              V log_offset, const NoiseRow& row, S* example) {
  const V epsilon = splat<V>(ball.epsilon), lower = splat<V>(ball.lower), upper = splat<V>(ball.upper);
  V sum{}, product = splat<V>(1.0);
  ChunkValues<V> r;
  chunk_normals<V>(chunk, channels, row, r);
  for (int t = 0; t < chunk.tiles; ++t) {
    const Tile& tile = chunk.tile[t];
    TileValues<V> x_adv;
    for (int i = 0; i < 4; ++i) {
      const TanhTerms<V> terms = tanh_terms<V>(prepared.mu[t][i] + prepared.sigma[t][i] * r[t][i]);
      x_adv[i] = clamp<V>(prepared.x[t][i] + epsilon * terms.tanh, lower, upper);
      if (!kDensity) continue;
      const V half_square = r[t][i] * r[t][i] * splat<V>(0.5);
      const V share = kLogOffset ? half_square + log_positive<V>(terms.derivative + log_offset)
                                 : half_square - terms.magnitude * splat<V>(2.0);
      const bool whole = tile.pixels == kTilePixels<V>;
      sum += whole ? share : masked(share, i, tile, 0.0);
      if (kLogOffset) continue;
      product *= whole ? terms.one_plus_decay : masked(terms.one_plus_decay, i, tile, 1.0);
    }
    store_tile<V>(example, tile, x_adv);
  }
  return kDensity ? sum_lanes(sum - log_positive<V>(product) * splat<V>(2.0)) : 0.0;
}

// The k samples of a chunk. partials, when wanted, is [k, B, chunks].
template <class V, class S>
void draw_samples(const Tiling<V>& tiling, const Chunk& chunk, const PreparedChunk<V>& prepared, const Ball& ball,
                  const Noise& noise, int64_t draw, int64_t samples, double log_offset, S* x_adv, double* partials) {
  const int64_t batch = tiling.shape.batch, channels = tiling.shape.channels, size = tiling.shape.example_size();
  const bool with_offset = has_offset<Scalar<V>>(log_offset);
  const V offset = splat<V>(log_offset);
  const double shared = sum_lanes(prepared.log_sigma) + chunk.pixels() * density_constant(ball.epsilon, with_offset);
  for (int64_t s = 0; s < samples; ++s) {
    const int64_t row_index = s * batch + chunk.example;
    const NoiseRow row = row_of(noise, draw, s, chunk.example);
    S* example = x_adv + row_index * size;
    if (partials == nullptr) {
      draw_sample<false, false, V>(chunk, channels, prepared, ball, offset, row, example);
      continue;
    }
    partials[row_index * tiling.chunks + chunk.index] =
        shared + (with_offset ? draw_sample<true, true, V>(chunk, channels, prepared, ball, offset, row, example)
                              : draw_sample<true, false, V>(chunk, channels, prepared, ball, offset, row, example));
  }
}

}  // namespace ADT_ISA
}  // namespace adt
