// One ascent step on (mu, rho) from d L / d x_adv and the entropy, in place; then, when asked, the next k samples.
#include "draw.h"
#include "storage.h"
#include "work.h"

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace {

// The gradients of (mu, sigma) from the samples, summed over them.
template <class V> struct ChunkGradient {
  ChunkValues<V> mu{}, sigma{};
};

template <bool kLogOffset, class V, class S>
void add_samples(const AscentArgs& args, const Chunk& chunk, const PreparedChunk<V>& prepared,
                 ChunkGradient<V>& gradient) {
  const V epsilon = splat<V>(args.ball.epsilon), lower = splat<V>(args.ball.lower), upper = splat<V>(args.ball.upper);
  const V grad_epsilon = splat<V>(args.ball.epsilon * args.grad_scale);
  const V entropy_weight = splat<V>(args.entropy_weight), log_offset = splat<V>(args.log_offset);
  for (int64_t s = 0; s < args.samples; ++s) {
    const int64_t row_index = s * args.shape.batch + chunk.example;
    ChunkValues<V> r;
    chunk_normals<V>(chunk, args.shape.channels, row_of(args.noise, args.noise.draw, s, chunk.example), r);
    for (int t = 0; t < chunk.tiles; ++t) {
      TileValues<V> grad;
      load_tile<V>(static_cast<const S*>(args.grad_x_adv) + row_index * args.shape.example_size(), chunk.tile[t], grad);
      for (int i = 0; i < 4; ++i) {
        const TanhTerms<V> terms = tanh_terms<V>(prepared.mu[t][i] + prepared.sigma[t][i] * r[t][i]);
        const V v = prepared.x[t][i] + epsilon * terms.tanh;
        const V passed = masked_by_clamp<V>(grad[i], v, lower, upper);
        const V d_u = location_gradient<kLogOffset>(terms, passed, grad_epsilon, entropy_weight, log_offset);
        gradient.mu[t][i] += d_u;
        gradient.sigma[t][i] += d_u * r[t][i];
      }
    }
  }
}

// d/d rho of a tile, with the entropy's c / sigma of every sample.
template <class V>
ADT_INLINE void scale_gradient(const AscentArgs& args, const TileValues<V>& rho, const TileValues<V>& grad_sigma,
                               TileValues<V>& grad_rho) {
  const V entropy = splat<V>(args.entropy_weight * static_cast<double>(args.samples));
  const V log_offset = splat<V>(args.log_offset);
  for (int i = 0; i < 4; ++i) {
    grad_rho[i] = rho_gradient(softplus<V>(rho[i]), grad_sigma[i], entropy, log_offset);
  }
}

// Adds the running sum, if one is kept, and moves the parameter.
template <class V>
ADT_INLINE void update(const AscentArgs& args, void* parameter, void* accumulated, int64_t start, const Tile& tile,
                       TileValues<V>& gradient, TileValues<V>& value) {
  using T = Scalar<V>;
  if (accumulated != nullptr) {
    TileValues<V> sum;
    load_tile<V>(static_cast<const T*>(accumulated) + start, tile, sum);
    for (int i = 0; i < 4; ++i) gradient[i] += sum[i];
    store_tile<V>(static_cast<T*>(accumulated) + start, tile, gradient);
  }
  const V step = splat<V>(args.step_size);
  for (int i = 0; i < 4; ++i) {
    value[i] += step * (args.update == Update::adam ? adam_direction<V>(gradient[i]) : sign<V>(gradient[i]));
  }
  store_tile<V>(static_cast<T*>(parameter) + start, tile, value);
}

// Steps every tile of the chunk and leaves the new distribution in `prepared`.
template <class V, class S> void step_chunk(const AscentArgs& args, const Chunk& chunk, PreparedChunk<V>& prepared) {
  using T = Scalar<V>;
  const int64_t start = chunk.example * args.shape.example_size();
  ChunkValues<V> rho;
  for (int t = 0; t < chunk.tiles; ++t) {
    const Tile& tile = chunk.tile[t];
    load_tile<V>(static_cast<const T*>(args.x) + start, tile, prepared.x[t]);
    load_tile<V>(static_cast<const T*>(args.mu) + start, tile, prepared.mu[t]);
    load_tile<V>(static_cast<const T*>(args.rho) + start, tile, rho[t]);
    set_scale(prepared, t, tile, rho[t], false, args.log_offset);
  }
  ChunkGradient<V> gradient;
  if (has_offset<T>(args.log_offset)) {
    add_samples<true, V, S>(args, chunk, prepared, gradient);
  } else {
    add_samples<false, V, S>(args, chunk, prepared, gradient);
  }
  for (int t = 0; t < chunk.tiles; ++t) {
    const Tile& tile = chunk.tile[t];
    TileValues<V> grad_rho;
    scale_gradient<V>(args, rho[t], gradient.sigma[t], grad_rho);
    update<V>(args, args.mu, args.accumulated_mu, start, tile, gradient.mu[t], prepared.mu[t]);
    update<V>(args, args.rho, args.accumulated_rho, start, tile, grad_rho, rho[t]);
    if (args.x_adv == nullptr) continue;
    set_scale(prepared, t, tile, rho[t], args.neg_log_density != nullptr, args.log_offset);
  }
}

}  // namespace

namespace cpu {
namespace ADT_ISA {

void tanh_gaussian_ascent(const AscentArgs& args, int64_t first, int64_t last, double* partials) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const Tiling<V> tiling(args.shape);
    for (int64_t item = first; item < last; ++item) {
      const Chunk chunk = chunk_of_item(tiling, item);
      PreparedChunk<V> prepared;
      step_chunk<V, S>(args, chunk, prepared);
      if (args.x_adv == nullptr) continue;
      draw_samples<V>(tiling, chunk, prepared, args.ball, args.noise, args.next_draw, args.samples, args.log_offset,
                      static_cast<S*>(args.x_adv), partials);
    }
  });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
