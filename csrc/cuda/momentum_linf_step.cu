// The step of the momentum iterative method (Dong et al., 2018): momentum = decay * momentum + grad / ||grad||_1, per
// example, then a projected step along its sign.
//
// Memory: reads grad twice (the second time mostly from cache) and x, x_adv and momentum once, writes the last two.
//
// Threads: one block per example; the norm is summed in double, in a fixed order.
#include "projected_step.h"

namespace adt {
namespace cuda {

namespace {

template <int kRun, class T, class S, class G>
__global__ void __launch_bounds__(kBlockSumThreads, 4)
    momentum_linf_step_kernel(StepArgs args, Bounds<T> bounds, T step_size, T decay, int64_t size) {
  for (int64_t example = blockIdx.x; example < args.shape.batch; example += gridDim.x) {
    const int64_t start = example * size;
    const G* grad_source = static_cast<const G*>(args.grad) + start;
    const T* x = static_cast<const T*>(args.x) + start;
    S* x_adv = static_cast<S*>(args.x_adv) + start;
    T* momentum_source = static_cast<T*>(args.momentum) + start;

    double magnitude = 0;
    for_each_run<kRun>(size, [&](int64_t i) {
      T grad[kRun];
      load_run(grad_source + i, grad);
#pragma unroll
      for (int j = 0; j < kRun; ++j) magnitude += static_cast<double>(absolute(grad[j]));
    });
    const Rescale<T> normalized(block_sum(magnitude), 1.0);

    for_each_run<kRun>(size, [&](int64_t i) {
      T grad[kRun], momentum[kRun];
      load_run(grad_source + i, grad);
      load_run(momentum_source + i, momentum);
#pragma unroll
      for (int j = 0; j < kRun; ++j) momentum[j] = decay * momentum[j] + normalized(grad[j]);
      store_run(momentum_source + i, momentum);
      sign_step(x + i, x_adv + i, bounds, step_size, momentum);
    });
  }
}

}  // namespace

int momentum_linf_step(const StepArgs& args, int device, void* stream) {
  const int64_t size = args.shape.example_size();
  if (size == 0) return 0;
  Launcher launcher(device, stream);
  with_step_types(args, [&](auto compute, auto storage, auto gradient) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using G = typename decltype(gradient)::type;
    with_run<T, S, G>(args, size, [&](auto length) {
      launcher.run(momentum_linf_step_kernel<length, T, S, G>, args.shape.batch, kBlockSumThreads, args,
                   Bounds<T>(args.ball), static_cast<T>(args.step_size), static_cast<T>(args.decay), size);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
