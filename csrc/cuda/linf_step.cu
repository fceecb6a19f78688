// PGD's step: x_adv moves along sign(grad) and is projected onto the L-infinity ball around x and the data bounds.
//
// Memory: reads grad, x and x_adv once, writes x_adv once; it is bound by that.
//
// Threads: a grid-stride loop over runs of elements, one run per thread.
#include "projected_step.h"

namespace adt {
namespace cuda {

namespace {

template <int kRun, class T, class S, class G>
__global__ void __launch_bounds__(kStepThreads)
    linf_step_kernel(StepArgs args, Bounds<T> bounds, T step_size, int64_t runs) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kStepThreads;
  for (int64_t run = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x; run < runs; run += stride) {
    T grad[kRun];
    load_run(static_cast<const G*>(args.grad) + run * kRun, grad);
    sign_step(static_cast<const T*>(args.x) + run * kRun, static_cast<S*>(args.x_adv) + run * kRun, bounds, step_size,
              grad);
  }
}

}  // namespace

int linf_step(const StepArgs& args, int device, void* stream) {
  const int64_t elements = args.shape.batch * args.shape.example_size();
  Launcher launcher(device, stream);
  with_step_types(args, [&](auto compute, auto storage, auto gradient) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using G = typename decltype(gradient)::type;
    with_run<T, S, G>(args, elements, [&](auto length) {
      const int64_t runs = elements / length;
      launcher.run(linf_step_kernel<length, T, S, G>, divide_up(runs, kStepThreads), kStepThreads, args,
                   Bounds<T>(args.ball), static_cast<T>(args.step_size), runs);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
