// Launching: which device runs a kernel, how many blocks it gets, and which types it is compiled for.
#pragma once

#include <cuda_runtime.h>

#include "../kernels.h"
#include "../math/half.h"

namespace adt {
namespace cuda {
namespace {

constexpr int kWarpSize = 32;
#ifndef ADT_MAX_GRID  // tests lower it, to see every grid-stride loop go round
#define ADT_MAX_GRID 0x7fffffff
#endif
constexpr int64_t kMaxGrid = ADT_MAX_GRID;  // blocks of a one-dimensional grid

ADT_INLINE int64_t divide_up(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }

// Makes a device current for its own lifetime, launches kernels on a stream of it, and keeps the first error.
class Launcher {
 public:
  Launcher(int device, void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
    keep(cudaGetDevice(&previous_));
    if (error_ != cudaSuccess || previous_ == device) return;
    keep(cudaSetDevice(device));
    changed_ = error_ == cudaSuccess;
  }
  ~Launcher() {
    if (changed_) cudaSetDevice(previous_);
  }
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  // Blocks beyond what a grid may hold are left to the kernel's grid-stride loop.
  template <class... Parameters, class... Arguments>
  void run(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) {
    if (error_ != cudaSuccess || blocks == 0) return;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
    keep(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

  int error() const { return static_cast<int>(error_); }

 private:
  // The runtime remembers an error until it is asked for it: forgotten here, it is not taken for a later call's.
  void keep(cudaError_t error) {
    error_ = error;
    if (error != cudaSuccess) cudaGetLastError();
  }

  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
  int previous_ = 0;
  bool changed_ = false;
};

template <class T> struct Type {
  using type = T;
};

// Calls f(Type<S>) with the type that stores what T computes: narrower than T only where that is float.
template <class T, class F> void with_storage(DType storage, F f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (storage == DType::bfloat16) return f(Type<bfloat16>{});
    if (storage == DType::float16) return f(Type<float16>{});
  }
  f(Type<T>{});
}

// Calls f(Type<T>, Type<S>): T computes, S stores.
template <class F> void with_types(DType dtype, DType storage, F f) {
  if (dtype == DType::float64) {
    with_storage<double>(storage, [&](auto s) { f(Type<double>{}, s); });
  } else {
    with_storage<float>(storage, [&](auto s) { f(Type<float>{}, s); });
  }
}

// The ball in the computing type, converted once on the host.
template <class T> struct Bounds {
  T epsilon, lower, upper;
  explicit Bounds(const Ball& ball)
      : epsilon(static_cast<T>(ball.epsilon)), lower(static_cast<T>(ball.lower)), upper(static_cast<T>(ball.upper)) {}
};

}  // namespace
}  // namespace cuda
}  // namespace adt
