// Vector-Jacobian product of sampling: d/d(x, mu, rho) of <grad_x_adv, x_adv> + <grad_neg_log_density, -log p>.
//
// Memory: reads x, mu, rho once and grad_x_adv [k] once, writes the gradients that are wanted. The noise is drawn
// again, so nothing but the inputs is kept from the forward pass.
//
// Threads: one per tile (access.h), which sums over the k samples in registers. Gradients of mu and sigma share the
// pass; what is not wanted is not stored.
#include "draw.h"

namespace adt {
namespace cuda {

namespace {

template <bool kLogOffset, class T, class S, class Tile>
__global__ void __launch_bounds__(kTileThreads)
    sample_backward_kernel(SampleBackwardArgs args, Bounds<T> bounds, T log_offset, Partition partition) {
  const int64_t tile_index = partition.tile();
  if (tile_index >= partition.tiles) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Stream stream(args.noise, args.noise.draw);
  const T* grad_density = static_cast<const T*>(args.grad_neg_log_density);  // [k, B] or null
  for (int64_t example = partition.first_example(); example < args.shape.batch; example += partition.examples_held) {
    const int64_t start = example * partition.example_size;
    const T* rho_source = static_cast<const T*>(args.rho) + start;
    T x[Tile::kElements], mu[Tile::kElements], rho[Tile::kElements], sigma[Tile::kElements];
    tile.load(static_cast<const T*>(args.x) + start, x);
    tile.load(static_cast<const T*>(args.mu) + start, mu);
    tile.load(rho_source, rho);
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) sigma[i] = softplus<T>(rho[i]).sigma;

    T grad_x[Tile::kElements] = {}, grad_mu[Tile::kElements] = {}, grad_sigma[Tile::kElements] = {};
    T density_weight = 0;
    // As in the ascent step, to where its sums begin: the ascent scales the gradient and weights all densities alike.
    for (int sample = 0; sample < static_cast<int>(args.samples); ++sample) {
      const T weight = grad_density ? grad_density[sample * args.shape.batch + example] : T(0);
      density_weight += weight;
      T grad[Tile::kElements];
      tile.load(static_cast<const S*>(args.grad_x_adv) + sample * partition.slab_size + start, grad);
      for_each_normal<T>(tile, stream.row(sample, example), [&](int i, T r) {
        const TanhTerms<T> terms = tanh_terms<T>(mu[i] + sigma[i] * r);
        const T passed = masked_by_clamp<T>(grad[i], x[i] + bounds.epsilon * terms.tanh, bounds.lower, bounds.upper);
        const T d_u = location_gradient<kLogOffset>(terms, passed, bounds.epsilon, weight, log_offset);
        grad_x[i] += passed;
        grad_mu[i] += d_u;
        grad_sigma[i] += d_u * r;
      });
    }

    if (args.grad_x) tile.store(static_cast<T*>(args.grad_x) + start, grad_x);
    if (args.grad_mu) tile.store(static_cast<T*>(args.grad_mu) + start, grad_mu);
    if (!args.grad_rho) continue;
    T grad_rho[Tile::kElements];
    tile.load(rho_source, rho);  // again: kept over the loop, it would cost registers
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      grad_rho[i] = rho_gradient(softplus<T>(rho[i]), grad_sigma[i], density_weight, log_offset);
    }
    tile.store(static_cast<T*>(args.grad_rho) + start, grad_rho);
  }
}

}  // namespace

int tanh_gaussian_sample_backward(const SampleBackwardArgs& args, int device, void* stream) {
  if (args.shape.batch * args.shape.example_size() == 0) return 0;
  Launcher launcher(device, stream);
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const bool all_aligned = aligned<S>(args.grad_x_adv) && aligned<T>(args.x) && aligned<T>(args.mu) &&
                             aligned<T>(args.rho) && aligned<T>(args.grad_x) && aligned<T>(args.grad_mu) &&
                             aligned<T>(args.grad_rho);
    with_tile<T>(args.shape, all_aligned, [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = Partition::of<Tile>(args.shape);
      const auto kernel = has_offset<T>(args.log_offset) ? sample_backward_kernel<true, T, S, Tile>
                                                         : sample_backward_kernel<false, T, S, Tile>;
      launcher.run(kernel, partition.grid(), kTileThreads, args, Bounds<T>(args.ball), static_cast<T>(args.log_offset),
                   partition);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
