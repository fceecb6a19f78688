// The standard normals themselves, as the sampler sees them.
//
// Memory: writes each of the k samples once.
//
// Threads: one per tile (access.h), for all k samples.
#include "draw.h"

namespace adt {
namespace cuda {

namespace {

template <class T, class Tile>
__global__ void __launch_bounds__(kTileThreads) normal_kernel(NormalArgs args, Partition partition) {
  const int64_t tile_index = partition.tile();
  if (tile_index >= partition.tiles) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Stream stream(args.noise, args.noise.draw);
  for (int64_t example = partition.first_example(); example < args.shape.batch; example += partition.examples_held) {
    T* out = static_cast<T*>(args.out) + example * partition.example_size;
    for (int sample = 0; sample < static_cast<int>(args.samples); ++sample, out += partition.slab_size) {
      T r[Tile::kElements];
      for_each_normal<T>(tile, stream.row(sample, example), [&](int i, T value) { r[i] = value; });
      tile.store(out, r);
    }
  }
}

}  // namespace

int normal(const NormalArgs& args, int device, void* stream) {
  if (args.samples * args.shape.batch * args.shape.example_size() == 0) return 0;
  Launcher launcher(device, stream);
  with_types(args.dtype, args.dtype, [&](auto compute, auto) {
    using T = typename decltype(compute)::type;
    with_tile<T>(args.shape, aligned<T>(args.out), [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = Partition::of<Tile>(args.shape);
      launcher.run(normal_kernel<T, Tile>, partition.grid(), kTileThreads, args, partition);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
