// What the rest of the module asks of the CUDA runtime.
#include <cuda_runtime.h>

#include "../kernels.h"

namespace adt {
namespace cuda {

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int device_count(int* error) {
  int count = 0;
  *error = static_cast<int>(cudaGetDeviceCount(&count));
  cudaGetLastError();  // so that a machine without a driver leaves no error behind
  return *error == 0 ? count : 0;
}

}  // namespace cuda
}  // namespace adt
