// A random start inside the ball: x_adv = clamp(x + epsilon U(-1, 1), lower, upper).
//
// Memory: reads x once, writes x_adv once.
//
// Threads: one per tile (access.h), which turns its own Philox blocks into uniforms.
#include "../math/projection.h"
#include "draw.h"

namespace adt {
namespace cuda {

namespace {

template <class T, class S, class Tile>
__global__ void __launch_bounds__(kTileThreads)
    uniform_start_kernel(UniformStartArgs args, Bounds<T> bounds, Partition partition) {
  const int64_t tile_index = partition.tile();
  if (tile_index >= partition.tiles) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Stream stream(args.noise, args.noise.draw);
  for (int64_t example = partition.first_example(); example < args.shape.batch; example += partition.examples_held) {
    const int64_t start = example * partition.example_size;
    T x[Tile::kElements], x_adv[Tile::kElements];
    tile.load(static_cast<const T*>(args.x) + start, x);
    for_each_word(tile, stream.row(0, example), [&](int i, uint32_t word) {
      const T v = x[i] + bounds.epsilon * symmetric_uniform(word);
      x_adv[i] = project_linf<T>(v, x[i], bounds.epsilon, bounds.lower, bounds.upper);
    });
    tile.store(static_cast<S*>(args.x_adv) + start, x_adv);
  }
}

}  // namespace

int uniform_start(const UniformStartArgs& args, int device, void* stream) {
  if (args.shape.batch * args.shape.example_size() == 0) return 0;
  Launcher launcher(device, stream);
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    with_tile<T>(args.shape, aligned<T>(args.x) && aligned<S>(args.x_adv), [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = Partition::of<Tile>(args.shape);
      launcher.run(uniform_start_kernel<T, S, Tile>, partition.grid(), kTileThreads, args, Bounds<T>(args.ball),
                   partition);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
