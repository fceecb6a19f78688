// Drawing: the normals of a tile, the k samples of a tile whose (x, mu, sigma) are in registers, and the sums of their
// -log p. Shared by sampling and by step-and-sample, so that both give the same bits.
#pragma once

#include "../math/tanh_gaussian.h"
#include "access.h"
#include "reduce.h"

namespace adt {
namespace cuda {
namespace {

// A draw of the noise stream, read from device memory: a captured graph sees the state's value at each replay.
struct Stream {
  uint64_t seed, offset;
  int64_t first_example;

  __device__ __forceinline__ Stream(const Noise& noise, int64_t draw)
      : seed(static_cast<uint64_t>(noise.state[0])),
        offset(static_cast<uint64_t>(noise.state[1] + draw)),
        first_example(noise.first_example) {}

  __device__ __forceinline__ NoiseRow row(int64_t sample, int64_t example) const {
    return noise_row(seed, offset, sample, first_example + example);
  }
};

// Calls visit(i, word) for the tile's elements i with their random words.
template <class Tile, class Visit>
__device__ __forceinline__ void for_each_word(const Tile& tile, const NoiseRow& row, Visit visit) {
#pragma unroll
  for (int channel = 0; channel < Tile::kChannels; ++channel) {
    const PhiloxWords<uint32_t> words = philox_block<uint32_t>(tile.block + channel, row);
#pragma unroll
    for (int lane = 0; lane < kNormalsPerBlock; ++lane) visit(lane * Tile::kChannels + channel, words.word[lane]);
  }
}

// Calls visit(i, r) for the tile's elements i with their normals r.
template <class T, class Tile, class Visit>
__device__ __forceinline__ void for_each_normal(const Tile& tile, const NoiseRow& row, Visit visit) {
#pragma unroll
  for (int channel = 0; channel < Tile::kChannels; ++channel) {
    const Normals<T> normals = box_muller<T>(philox_block<uint32_t>(tile.block + channel, row));
#pragma unroll
    for (int lane = 0; lane < kNormalsPerBlock; ++lane) visit(lane * Tile::kChannels + channel, normals.lane[lane]);
  }
}

// What the k samples of a tile have in common.
template <class T, class Tile> struct Distribution {
  T x[Tile::kElements], mu[Tile::kElements], sigma[Tile::kElements];
  T log_sigma;   // that of sigma + log_offset, summed over the tile
  T log_offset;  // added inside the logarithms of the density
};

template <bool kDensity, bool kLogOffset, class T, class Tile>
__device__ __forceinline__ void set_scale(Distribution<T, Tile>& distribution, const Tile& tile,
                                          const T (&rho)[Tile::kElements], T log_offset) {
  distribution.log_sigma = 0;
  distribution.log_offset = log_offset;
#pragma unroll
  for (int i = 0; i < Tile::kElements; ++i) {
    const T sigma = softplus<T>(rho[i]).sigma;
    distribution.sigma[i] = sigma;
    if (kDensity && tile.holds(i)) distribution.log_sigma += log_scale<kLogOffset>(sigma, rho[i], log_offset);
  }
}

// Writes one sample of a tile. Returns the tile's share of -log p but for the constants: with an offset the
//   sum of r^2/2 + log(sigma + o) + log(1 - t^2 + o),
// and without the
//   sum of r^2/2 + log sigma - 2 |u| - 2 log(1 + exp(-2 |u|)),
// where the last logarithms, of factors in (1, 2], are taken as the logarithm of their product.
template <bool kDensity, bool kLogOffset, class T, class S, class Tile>
__device__ __forceinline__ T draw_sample(const Distribution<T, Tile>& distribution, const Tile& tile,
                                         const Bounds<T>& bounds, const NoiseRow& row, S* example) {
  T x_adv[Tile::kElements], sum = distribution.log_sigma, product = 1;
  for_each_normal<T>(tile, row, [&](int i, T r) {
    const TanhTerms<T> terms = tanh_terms<T>(distribution.mu[i] + distribution.sigma[i] * r);
    x_adv[i] = clamp<T>(distribution.x[i] + bounds.epsilon * terms.tanh, bounds.lower, bounds.upper);
    if (!kDensity || !tile.holds(i)) return;
    if (kLogOffset) {
      sum += r * r * T(0.5) + log_positive<T>(terms.derivative + distribution.log_offset);
    } else {
      sum += r * r * T(0.5) - terms.magnitude * T(2);
      product *= terms.one_plus_decay;
    }
  });
  tile.store(example, x_adv);
  if (!kDensity) return 0;
  return kLogOffset ? sum : sum - log_positive<T>(product) * T(2);
}

// Where the sums of -log p over each warp's tiles go.
template <class T> struct DensityPartials {
  T* sums;        // [k, B, warps]
  int64_t warps;  // per example

  static int64_t warps_for(const Partition& partition) { return partition.blocks.divisor * (kTileThreads / kWarpSize); }

  __device__ __forceinline__ void leave(int64_t row, int64_t tile, T share) const {
    const T sum = warp_sum(share);
    if (threadIdx.x % kWarpSize == 0) sums[row * warps + tile / kWarpSize] = sum;
  }
};

// Draws the k samples of one example's tile. Threads without a tile (`active` false) only take part in the sums.
template <bool kDensity, bool kLogOffset, class T, class S, class Tile>
__device__ __forceinline__ void draw_samples(const Distribution<T, Tile>& distribution, const Tile& tile, bool active,
                                             const Shape& shape, const Partition& partition, const Bounds<T>& bounds,
                                             const Stream& stream, int samples, int64_t example, S* x_adv,
                                             const DensityPartials<T>& partials, int64_t tile_index) {
  S* target = x_adv + example * partition.example_size;
  int sample = 0;
  do {
    T share = 0;
    if (active) {
      share = draw_sample<kDensity, kLogOffset>(distribution, tile, bounds, stream.row(sample, example), target);
    }
    if (kDensity) partials.leave(sample * shape.batch + example, tile_index, share);
    target += partition.slab_size;
  } while (++sample < samples);
}

// Adds up the partial sums of each (sample, example): a warp per row, in double.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    sum_partials_kernel(DensityPartials<T> partials, int64_t rows, double constant, T* neg_log_density) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTileThreads / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  for (int64_t row = first / kWarpSize; row < rows; row += stride) {
    double sum = 0;
    for (int64_t warp = lane; warp < partials.warps; warp += kWarpSize) {
      sum += static_cast<double>(partials.sums[row * partials.warps + warp]);
    }
    sum = warp_sum(sum);
    if (lane == 0) neg_log_density[row] = static_cast<T>(constant + sum);
  }
}

template <class T>
void sum_partials(Launcher& launcher, const DensityPartials<T>& partials, const Shape& shape, const Ball& ball,
                  int64_t samples, bool offset, void* neg_log_density) {
  const int64_t rows = samples * shape.batch;
  const double constant = static_cast<double>(shape.example_size()) * density_constant(ball.epsilon, offset);
  launcher.run(sum_partials_kernel<T>, divide_up(rows * kWarpSize, kTileThreads), kTileThreads, partials, rows,
               constant, static_cast<T*>(neg_log_density));
}

}  // namespace
}  // namespace cuda
}  // namespace adt
