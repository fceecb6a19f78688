// Vector-Jacobian product of sampling: d/d(x, mu, rho) of <grad_x_adv, x_adv> + <grad_nld, -log p>. The noise is
// drawn again, chunk by chunk, so nothing but x, mu and rho is kept from the forward pass.
#include "storage.h"
#include "work.h"

#include "../math/tanh_gaussian.h"

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace {

// A chunk's inputs, and its gradients summed over the samples.
template <class V> struct BackwardChunk {
  ChunkValues<V> x, mu, rho, sigma, grad_x{}, grad_mu{}, grad_sigma{};
  double density_weight = 0;  // the gradients of -log p, summed over the samples
};

template <class V> void load(const SampleBackwardArgs& args, const Chunk& chunk, BackwardChunk<V>& values) {
  using T = Scalar<V>;
  const int64_t start = chunk.example * args.shape.example_size();
  for (int t = 0; t < chunk.tiles; ++t) {
    load_tile<V>(static_cast<const T*>(args.x) + start, chunk.tile[t], values.x[t]);
    load_tile<V>(static_cast<const T*>(args.mu) + start, chunk.tile[t], values.mu[t]);
    load_tile<V>(static_cast<const T*>(args.rho) + start, chunk.tile[t], values.rho[t]);
    for (int i = 0; i < 4; ++i) values.sigma[t][i] = softplus<V>(values.rho[t][i]).sigma;
  }
}

template <bool kLogOffset, class V, class S>
void add_samples(const SampleBackwardArgs& args, const Chunk& chunk, BackwardChunk<V>& values) {
  const V epsilon = splat<V>(args.ball.epsilon), lower = splat<V>(args.ball.lower), upper = splat<V>(args.ball.upper);
  const V log_offset = splat<V>(args.log_offset);
  const auto* grad_density = static_cast<const Scalar<V>*>(args.grad_neg_log_density);  // [k, B]
  // As in the ascent step, to where its sums begin: the ascent scales the gradient and weights all densities alike.
  for (int64_t s = 0; s < args.samples; ++s) {
    const int64_t row_index = s * args.shape.batch + chunk.example;
    const double weight = grad_density ? static_cast<double>(grad_density[row_index]) : 0.0;
    values.density_weight += weight;
    ChunkValues<V> r;
    chunk_normals<V>(chunk, args.shape.channels, row_of(args.noise, args.noise.draw, s, chunk.example), r);
    for (int t = 0; t < chunk.tiles; ++t) {
      TileValues<V> grad;
      load_tile<V>(static_cast<const S*>(args.grad_x_adv) + row_index * args.shape.example_size(), chunk.tile[t], grad);
      for (int i = 0; i < 4; ++i) {
        const TanhTerms<V> terms = tanh_terms<V>(values.mu[t][i] + values.sigma[t][i] * r[t][i]);
        const V v = values.x[t][i] + epsilon * terms.tanh;
        const V passed = masked_by_clamp<V>(grad[i], v, lower, upper);
        const V d_u = location_gradient<kLogOffset>(terms, passed, epsilon, splat<V>(weight), log_offset);
        values.grad_x[t][i] += passed;
        values.grad_mu[t][i] += d_u;
        values.grad_sigma[t][i] += d_u * r[t][i];
      }
    }
  }
}

// Stores the gradients that are wanted.
template <class V> void store(const SampleBackwardArgs& args, const Chunk& chunk, const BackwardChunk<V>& values) {
  using T = Scalar<V>;
  const int64_t start = chunk.example * args.shape.example_size();
  const V density_weight = splat<V>(values.density_weight), log_offset = splat<V>(args.log_offset);
  for (int t = 0; t < chunk.tiles; ++t) {
    if (args.grad_x) store_tile<V>(static_cast<T*>(args.grad_x) + start, chunk.tile[t], values.grad_x[t]);
    if (args.grad_mu) store_tile<V>(static_cast<T*>(args.grad_mu) + start, chunk.tile[t], values.grad_mu[t]);
    if (!args.grad_rho) continue;
    TileValues<V> grad_rho;
    for (int i = 0; i < 4; ++i) {
      grad_rho[i] = rho_gradient(softplus<V>(values.rho[t][i]), values.grad_sigma[t][i], density_weight, log_offset);
    }
    store_tile<V>(static_cast<T*>(args.grad_rho) + start, chunk.tile[t], grad_rho);
  }
}

}  // namespace

namespace cpu {
namespace ADT_ISA {

void tanh_gaussian_sample_backward(const SampleBackwardArgs& args, int64_t first, int64_t last) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const Tiling<V> tiling(args.shape);
    for (int64_t item = first; item < last; ++item) {
      const Chunk chunk = chunk_of_item(tiling, item);
      BackwardChunk<V> values;
      load(args, chunk, values);
      if (has_offset<Scalar<V>>(args.log_offset)) {
        add_samples<true, V, S>(args, chunk, values);
      } else {
        add_samples<false, V, S>(args, chunk, values);
      }
      store(args, chunk, values);
    }
  });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
