// Sums over a warp and over a block. The order of additions is fixed by the thread numbers, so results are the same
// bits from run to run.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"

namespace adt {
namespace cuda {
namespace {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Every lane gets the sum; all 32 must take part.
template <class T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

constexpr int kBlockSumThreads = 256;

// Every thread gets the sum; all kBlockSumThreads of the block must take part.
__device__ inline double block_sum(double value) {
  __shared__ double warp_sums[kBlockSumThreads / kWarpSize];
  value = warp_sum(value);
  __syncthreads();  // until the sums of an earlier call have been read
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int warp = 0; warp < kBlockSumThreads / kWarpSize; ++warp) sum += warp_sums[warp];
  return sum;
}

}  // namespace
}  // namespace cuda
}  // namespace adt
