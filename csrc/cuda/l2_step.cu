// The L2 step: v = x_adv + step * grad / ||grad||_2, then x_adv = clamp(x + (v - x) * min(1, epsilon / ||v - x||_2)).
//
// Memory: reads grad three times and x and x_adv twice (all but the first mostly from cache), writes x_adv once.
//
// Threads: one block per example; both norms are summed in double, so that tiny gradients do not underflow when
// squared, and in a fixed order.
#include "projected_step.h"

namespace adt {
namespace cuda {

namespace {

template <class T> __device__ __forceinline__ double squared(T value) {
  const auto v = static_cast<double>(value);
  return v * v;
}

template <int kRun, class T, class S, class G>
__global__ void __launch_bounds__(kBlockSumThreads, 4) l2_step_kernel(StepArgs args, Bounds<T> bounds, int64_t size) {
  for (int64_t example = blockIdx.x; example < args.shape.batch; example += gridDim.x) {
    const int64_t start = example * size;
    const G* grad_source = static_cast<const G*>(args.grad) + start;
    const T* x_source = static_cast<const T*>(args.x) + start;
    S* x_adv_source = static_cast<S*>(args.x_adv) + start;

    double grad_squares = 0;
    for_each_run<kRun>(size, [&](int64_t i) {
      T grad[kRun];
      load_run(grad_source + i, grad);
#pragma unroll
      for (int j = 0; j < kRun; ++j) grad_squares += squared(grad[j]);
    });
    const Rescale<T> step(::sqrt(block_sum(grad_squares)), args.step_size);

    // x and v - x of a run.
    const auto load_moved = [&](int64_t i, T(&x)[kRun], T(&delta)[kRun]) {
      T grad[kRun], x_adv[kRun];
      load_run(grad_source + i, grad);
      load_run(x_source + i, x);
      load_run(x_adv_source + i, x_adv);
#pragma unroll
      for (int j = 0; j < kRun; ++j) delta[j] = (x_adv[j] - x[j]) + step(grad[j]);
    };

    double delta_squares = 0;
    for_each_run<kRun>(size, [&](int64_t i) {
      T x[kRun], delta[kRun];
      load_moved(i, x, delta);
#pragma unroll
      for (int j = 0; j < kRun; ++j) delta_squares += squared(delta[j]);
    });
    const double norm = ::sqrt(block_sum(delta_squares));
    const T shrink = static_cast<T>(norm > args.ball.epsilon ? args.ball.epsilon / norm : 1.0);

    for_each_run<kRun>(size, [&](int64_t i) {
      T x[kRun], delta[kRun], x_adv[kRun];
      load_moved(i, x, delta);
#pragma unroll
      for (int j = 0; j < kRun; ++j) x_adv[j] = clamp<T>(x[j] + delta[j] * shrink, bounds.lower, bounds.upper);
      store_run(x_adv_source + i, x_adv);
    });
  }
}

}  // namespace

int l2_step(const StepArgs& args, int device, void* stream) {
  const int64_t size = args.shape.example_size();
  if (size == 0) return 0;
  Launcher launcher(device, stream);
  with_step_types(args, [&](auto compute, auto storage, auto gradient) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using G = typename decltype(gradient)::type;
    with_run<T, S, G>(args, size, [&](auto length) {
      launcher.run(l2_step_kernel<length, T, S, G>, args.shape.batch, kBlockSumThreads, args, Bounds<T>(args.ball),
                   size);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
