// One ascent step on (mu, rho) from d L / d x_adv and the entropy, in place; then, when asked, the next k samples from
// the new distribution. With the classifier this is the whole inner loop of ADT-EXP.
//
// Memory: reads x, mu, rho and the k gradients once, writes mu, rho and the k new samples once; the running sums of
// the published recipe add a read and a write each. Both sets of normals are made in registers.
//
// Threads: one per tile (access.h). It sums the gradient over the k samples, steps, and draws from the stepped
// distribution without leaving its registers.
#include "draw.h"

namespace adt {
namespace cuda {

namespace {

// The scalars of a step in the computing type, converted once on the host.
template <class T> struct Step {
  T step_size, grad_epsilon, entropy_weight, entropy_of_samples, log_offset;
  explicit Step(const AscentArgs& args)
      : step_size(static_cast<T>(args.step_size)),
        grad_epsilon(static_cast<T>(args.ball.epsilon * args.grad_scale)),
        entropy_weight(static_cast<T>(args.entropy_weight)),
        entropy_of_samples(static_cast<T>(args.entropy_weight * static_cast<double>(args.samples))),
        log_offset(static_cast<T>(args.log_offset)) {}
};

// The gradients of (mu, rho), summed over the k samples.
template <bool kLogOffset, class T, class S, class Tile>
__device__ __forceinline__ void parameter_gradient(const AscentArgs& args, const Partition& partition,
                                                   const Bounds<T>& bounds, const Step<T>& step, const Tile& tile,
                                                   const Stream& stream, int64_t example, const T (&x)[Tile::kElements],
                                                   const T (&mu)[Tile::kElements], const T (&rho)[Tile::kElements],
                                                   T (&grad_mu)[Tile::kElements], T (&grad_rho)[Tile::kElements]) {
  T sigma[Tile::kElements], grad_sigma[Tile::kElements];
#pragma unroll
  for (int i = 0; i < Tile::kElements; ++i) {
    sigma[i] = softplus<T>(rho[i]).sigma;
    grad_mu[i] = grad_sigma[i] = 0;
  }
  const S* source = static_cast<const S*>(args.grad_x_adv) + example * partition.example_size;
  for (int sample = 0; sample < static_cast<int>(args.samples); ++sample, source += partition.slab_size) {
    T grad[Tile::kElements];
    tile.load(source, grad);
    for_each_normal<T>(tile, stream.row(sample, example), [&](int i, T r) {
      const TanhTerms<T> terms = tanh_terms<T>(mu[i] + sigma[i] * r);
      const T passed = masked_by_clamp<T>(grad[i], x[i] + bounds.epsilon * terms.tanh, bounds.lower, bounds.upper);
      const T d_u =
          location_gradient<kLogOffset>(terms, passed, step.grad_epsilon, step.entropy_weight, step.log_offset);
      grad_mu[i] += d_u;
      grad_sigma[i] += d_u * r;
    });
  }
#pragma unroll
  for (int i = 0; i < Tile::kElements; ++i) {
    const Scale<T> scale{sigma[i], softplus<T>(rho[i]).derivative};
    grad_rho[i] = rho_gradient(scale, grad_sigma[i], step.entropy_of_samples, step.log_offset);
  }
}

// Adds the running sum, if one is kept, and moves the parameter.
template <class T, class Tile>
__device__ __forceinline__ void update(Update rule, T step_size, const Tile& tile, T* parameter, T* accumulated,
                                       T (&gradient)[Tile::kElements], T (&value)[Tile::kElements]) {
  if (accumulated != nullptr) {
    T sum[Tile::kElements];
    tile.load(accumulated, sum);
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) gradient[i] += sum[i];
    tile.store(accumulated, gradient);
  }
  if (rule == Update::adam) {
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) value[i] += step_size * adam_direction<T>(gradient[i]);
  } else {
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) value[i] += step_size * sign<T>(gradient[i]);
  }
  tile.store(parameter, value);
}

template <bool kLogOffset, class T, class S, class Tile>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T, Tile>)
    ascent_kernel(AscentArgs args, Bounds<T> bounds, Step<T> step, Partition partition) {
  const int64_t tile_index = partition.tile();
  if (tile_index >= partition.tiles) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Stream stream(args.noise, args.noise.draw), next_stream(args.noise, args.next_draw);
  for (int64_t example = partition.first_example(); example < args.shape.batch; example += partition.examples_held) {
    const int64_t start = example * partition.example_size;
    T* mu = static_cast<T*>(args.mu) + start;
    T* rho = static_cast<T*>(args.rho) + start;
    T* accumulated_mu = args.accumulated_mu ? static_cast<T*>(args.accumulated_mu) + start : nullptr;
    T* accumulated_rho = args.accumulated_rho ? static_cast<T*>(args.accumulated_rho) + start : nullptr;
    Distribution<T, Tile> distribution;
    T stepped_rho[Tile::kElements], grad_mu[Tile::kElements], grad_rho[Tile::kElements];
    tile.load(static_cast<const T*>(args.x) + start, distribution.x);
    tile.load(mu, distribution.mu);
    tile.load(rho, stepped_rho);
    parameter_gradient<kLogOffset, T, S>(args, partition, bounds, step, tile, stream, example, distribution.x,
                                         distribution.mu, stepped_rho, grad_mu, grad_rho);
    update(args.update, step.step_size, tile, mu, accumulated_mu, grad_mu, distribution.mu);
    update(args.update, step.step_size, tile, rho, accumulated_rho, grad_rho, stepped_rho);
    if (args.x_adv == nullptr) continue;
    set_scale<false, false>(distribution, tile, stepped_rho, step.log_offset);
    draw_samples<false, false>(distribution, tile, true, args.shape, partition, bounds, next_stream,
                               static_cast<int>(args.samples), example, static_cast<S*>(args.x_adv),
                               DensityPartials<T>{}, tile_index);
  }
}

// The step alone: its samples are drawn by a kernel of their own when their density is wanted. No training loop asks
// for it, and a fused variant would double what there is to compile.
AscentArgs without_samples(AscentArgs args) {
  args.x_adv = nullptr;
  return args;
}

SampleArgs samples_of(const AscentArgs& args) {
  const Noise next{args.noise.state, args.next_draw, args.noise.first_example};
  return {args.dtype,   args.storage,         args.shape,   args.ball, next,
          args.samples, args.log_offset,      args.x,       args.mu,   args.rho,
          args.x_adv,   args.neg_log_density, args.partials};
}

}  // namespace

int tanh_gaussian_ascent(const AscentArgs& args, int device, void* stream) {
  if (args.samples * args.shape.batch * args.shape.example_size() == 0) return 0;
  if (args.x_adv != nullptr && args.neg_log_density != nullptr) {
    const int error = tanh_gaussian_ascent(without_samples(args), device, stream);
    return error != 0 ? error : tanh_gaussian_sample(samples_of(args), device, stream);
  }
  Launcher launcher(device, stream);
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const bool all_aligned = aligned<S>(args.grad_x_adv) && aligned<T>(args.x) && aligned<T>(args.mu) &&
                             aligned<T>(args.rho) && aligned<T>(args.accumulated_mu) &&
                             aligned<T>(args.accumulated_rho) && aligned<S>(args.x_adv);
    with_tile<T>(args.shape, all_aligned, [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = Partition::of<Tile>(args.shape);
      const auto kernel =
          has_offset<T>(args.log_offset) ? ascent_kernel<true, T, S, Tile> : ascent_kernel<false, T, S, Tile>;
      launcher.run(kernel, partition.grid(), kTileThreads, args, Bounds<T>(args.ball), Step<T>(args), partition);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
