// Sampling x_adv = clamp(x + epsilon tanh(mu + sigma r)) with its negative log density.
#include "draw.h"
#include "storage.h"
#include "work.h"

namespace adt {

namespace {

template <class V> void prepare(const SampleArgs& args, const Chunk& chunk, PreparedChunk<V>& prepared) {
  using T = Scalar<V>;
  const int64_t start = chunk.example * args.shape.example_size();
  for (int t = 0; t < chunk.tiles; ++t) {
    const Tile& tile = chunk.tile[t];
    TileValues<V> rho;
    load_tile<V>(static_cast<const T*>(args.x) + start, tile, prepared.x[t]);
    load_tile<V>(static_cast<const T*>(args.mu) + start, tile, prepared.mu[t]);
    load_tile<V>(static_cast<const T*>(args.rho) + start, tile, rho);
    set_scale(prepared, t, tile, rho, args.neg_log_density != nullptr, args.log_offset);
  }
}

}  // namespace

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace cpu {
namespace ADT_ISA {

int64_t chunks_per_example(DType dtype, const Shape& shape) {
  return dtype == DType::float64 ? Tiling<double>(shape).chunks : Tiling<Floats>(shape).chunks;
}

void tanh_gaussian_sample(const SampleArgs& args, int64_t first, int64_t last, double* partials) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const Tiling<V> tiling(args.shape);
    for (int64_t item = first; item < last; ++item) {
      const Chunk chunk = chunk_of_item(tiling, item);
      PreparedChunk<V> prepared;
      prepare(args, chunk, prepared);
      draw_samples<V>(tiling, chunk, prepared, args.ball, args.noise, args.noise.draw, args.samples, args.log_offset,
                      static_cast<S*>(args.x_adv), partials);
    }
  });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
