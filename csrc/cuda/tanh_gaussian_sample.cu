// Sampling x_adv = clamp(x + epsilon tanh(mu + sigma r), lower, upper), k times, with its negative log density.
//
// Memory: reads x, mu and rho once (12 bytes an element), writes each sample once (4 or 2 bytes); the noise is made in
// registers. Arithmetic is about even with that at k = 5: a Philox block and two Box-Muller pairs per four normals.
//
// Threads: one per tile (access.h); it keeps (x, mu, sigma) of its tile in registers and draws all k samples of it.
// With a density each warp leaves one partial sum per sample, which a second kernel adds up.
#include "draw.h"

namespace adt {
namespace cuda {

namespace {

template <bool kDensity, bool kLogOffset, class T, class S, class Tile>
__global__ void __launch_bounds__(kTileThreads)
    sample_kernel(SampleArgs args, Bounds<T> bounds, T log_offset, Partition partition, DensityPartials<T> partials) {
  const int64_t tile_index = partition.tile();
  const bool active = tile_index < partition.tiles;
  if (!kDensity && !active) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Stream stream(args.noise, args.noise.draw);
  for (int64_t example = partition.first_example(); example < args.shape.batch; example += partition.examples_held) {
    Distribution<T, Tile> distribution;
    if (active) {
      const int64_t start = example * partition.example_size;
      T rho[Tile::kElements];
      tile.load(static_cast<const T*>(args.x) + start, distribution.x);
      tile.load(static_cast<const T*>(args.mu) + start, distribution.mu);
      tile.load(static_cast<const T*>(args.rho) + start, rho);
      set_scale<kDensity, kLogOffset>(distribution, tile, rho, log_offset);
    }
    draw_samples<kDensity, kLogOffset>(distribution, tile, active, args.shape, partition, bounds, stream,
                                       static_cast<int>(args.samples), example, static_cast<S*>(args.x_adv), partials,
                                       tile_index);
  }
}

}  // namespace

int64_t density_partials(const Shape& shape) {
  if (shape.example_size() == 0) return 0;
  // Strided tiles are the smallest, so they need the most.
  return DensityPartials<float>::warps_for(Partition::of<StridedTile>(shape));
}

int tanh_gaussian_sample(const SampleArgs& args, int device, void* stream) {
  if (args.samples * args.shape.batch * args.shape.example_size() == 0) return 0;
  Launcher launcher(device, stream);
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const bool all_aligned =
        aligned<T>(args.x) && aligned<T>(args.mu) && aligned<T>(args.rho) && aligned<S>(args.x_adv);
    with_tile<T>(args.shape, all_aligned, [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = Partition::of<Tile>(args.shape);
      const DensityPartials<T> partials{static_cast<T*>(args.partials), DensityPartials<T>::warps_for(partition)};
      const bool density = args.neg_log_density != nullptr, offset = has_offset<T>(args.log_offset);
      const auto kernel = !density ? sample_kernel<false, false, T, S, Tile>
                          : offset ? sample_kernel<true, true, T, S, Tile>
                                   : sample_kernel<true, false, T, S, Tile>;
      launcher.run(kernel, partition.grid(), kTileThreads, args, Bounds<T>(args.ball), static_cast<T>(args.log_offset),
                   partition, partials);
      if (density) sum_partials(launcher, partials, args.shape, args.ball, args.samples, offset, args.neg_log_density);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
