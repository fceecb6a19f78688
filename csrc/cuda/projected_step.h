// What the projected gradient steps share: they are elementwise in the order of memory, so the layout does not matter;
// only the L1 and L2 norms look at the example. A run is the elements a thread moves at a time, four or one.
#pragma once

#include <type_traits>

#include "../math/projection.h"
#include "access.h"
#include "reduce.h"

namespace adt {
namespace cuda {
namespace {

constexpr int kStepThreads = 256;  // per block

template <int kRun, class T, class S> __device__ __forceinline__ void load_run(const S* address, T (&values)[kRun]) {
  if constexpr (kRun == kPack) {
    load_pack(address, values);
  } else {
    values[0] = load_as(address, T{});
  }
}

template <int kRun, class T, class S> __device__ __forceinline__ void store_run(S* address, const T (&values)[kRun]) {
  if constexpr (kRun == kPack) {
    store_pack(address, values);
  } else {
    store_as(address, values[0]);
  }
}

// Calls f(Type<T>, Type<S of x_adv>, Type<G of grad>).
template <class F> void with_step_types(const StepArgs& args, F f) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    with_storage<T>(args.gradient, [&](auto gradient) { f(compute, storage, gradient); });
  });
}

// Calls f(std::integral_constant) with the length of the runs that `elements` neighbours can be cut into.
template <class T, class S, class G, class F> void with_run(const StepArgs& args, int64_t elements, F f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (elements % kPack == 0 && aligned<G>(args.grad) && aligned<T>(args.x) && aligned<S>(args.x_adv) &&
        aligned<T>(args.momentum)) {
      return f(std::integral_constant<int, kPack>{});
    }
  }
  f(std::integral_constant<int, 1>{});
}

// Calls f(i) for the start i of each run that a thread owns of an example, where one block of kBlockSumThreads does the
// example. Two runs are in flight at a time: the compiler's own choice, four, costs registers, on sm_100 more than
// there are.
template <int kRun, class F> __device__ __forceinline__ void for_each_run(int64_t size, F f) {
#pragma unroll 2
  for (int64_t i = threadIdx.x * kRun; i < size; i += kBlockSumThreads * kRun) f(i);
}

// Moves a run of x_adv along sign(direction) and projects.
template <int kRun, class T, class S>
__device__ __forceinline__ void sign_step(const T* x_source, S* x_adv_source, const Bounds<T>& bounds, T step_size,
                                          const T (&direction)[kRun]) {
  T x[kRun], x_adv[kRun];
  load_run(x_source, x);
  load_run(x_adv_source, x_adv);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const T moved = x_adv[i] + step_size * sign<T>(direction[i]);
    x_adv[i] = project_linf<T>(moved, x[i], bounds.epsilon, bounds.lower, bounds.upper);
  }
  store_run(x_adv_source, x_adv);
}

}  // namespace
}  // namespace cuda
}  // namespace adt
