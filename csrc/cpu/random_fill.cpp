// Fills from the noise stream: the bare normals, and a uniform random start inside the ball.
#include "storage.h"
#include "work.h"

#include "../math/projection.h"

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace cpu {
namespace ADT_ISA {

void normal(const NormalArgs& args, int64_t first, int64_t last) {
  with_compute_type(args.dtype, [&](auto compute) {
    using V = typename decltype(compute)::type;
    const Tiling<V> tiling(args.shape);
    for (int64_t item = first; item < last; ++item) {
      const Chunk chunk = chunk_of_item(tiling, item);
      for (int64_t s = 0; s < args.samples; ++s) {
        const NoiseRow row = row_of(args.noise, args.noise.draw, s, chunk.example);
        Scalar<V>* out =
            static_cast<Scalar<V>*>(args.out) + (s * args.shape.batch + chunk.example) * args.shape.example_size();
        ChunkValues<V> r;
        chunk_normals<V>(chunk, args.shape.channels, row, r);
        for (int t = 0; t < chunk.tiles; ++t) store_tile<V>(out, chunk.tile[t], r[t]);
      }
    }
  });
}

void uniform_start(const UniformStartArgs& args, int64_t first, int64_t last) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const V epsilon = splat<V>(args.ball.epsilon), lower = splat<V>(args.ball.lower), upper = splat<V>(args.ball.upper);
    const Tiling<V> tiling(args.shape);
    for (int64_t item = first; item < last; ++item) {
      const Chunk chunk = chunk_of_item(tiling, item);
      const NoiseRow row = row_of(args.noise, args.noise.draw, 0, chunk.example);
      const int64_t start = chunk.example * args.shape.example_size();
      for (int t = 0; t < chunk.tiles; ++t) {
        const Tile& tile = chunk.tile[t];
        const PhiloxWords<UintOf<V>> words = tile_words<V>(tile, args.shape.channels, row);
        TileValues<V> x, v;
        for (int i = 0; i < 4; ++i) v[i] = symmetric_uniform(words.word[i]);
        interleave_planes(v);
        load_tile<V>(static_cast<const Scalar<V>*>(args.x) + start, tile, x);
        for (int i = 0; i < 4; ++i) v[i] = project_linf<V>(x[i] + epsilon * v[i], x[i], epsilon, lower, upper);
        store_tile<V>(static_cast<S*>(args.x_adv) + start, tile, v);
      }
    }
  });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
