// An emulation of the small part of CUDA that csrc/cuda/*.cu uses, so that the very same files compile as C++ and run
// on the CPU: this file stands in for NVIDIA's <cuda_runtime.h> on the include path, threads.cpp runs the kernels.
//
// What it is faithful to: thread and block indices, warps of 32, barriers, shuffles, launch limits, vector types with
// their alignment. What it is not: threads of a block take turns, so races between two barriers show only as far as
// the order of turns matters (ADT_EMULATED_ORDER runs both); device functions and rounding are the host's.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another, so one copy serves them all; the section lets each block find it poisoned.
#define __shared__ static __attribute__((section("emulated_shared_memory")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Of the thread whose turn it is.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// ---- Threads that wait for each other ---------------------------------------------------------------------------
namespace cuda_emulator {

// A line of kernel source: threads that wait for each other must wait at the same one.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const { return line == other.line && !strcmp(file, other.file); }
};

void wait_for_block(Site site);
// Gives `bits` to the lanes of the mask and returns those of lane `source`.
uint64_t exchange(unsigned mask, uint64_t bits, int source, Site site);
int lane();

}  // namespace cuda_emulator

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_emulator::wait_for_block({file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = cuda_emulator::exchange(mask, bits, cuda_emulator::lane() ^ distance, {file, line});
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

template <class T> void __stwb(T* address, T value) { *address = value; }

// ---- The runtime: one device, whose memory is the host's ----------------------------------------------------------
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

namespace cuda_emulator {
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);
}

// Runs the kernel to its end. Throws std::runtime_error where threads would wait for ever.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  return cuda_emulator::launch(*config, [&] { kernel(arguments...); });
}
