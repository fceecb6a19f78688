// Between the dispatcher and the kernels of each instruction set: a kernel does a range of work items.
//
// An item is a chunk of an example (tile.h), an example (l2_step, momentum_linf_step), a run of elements
// (linf_step, affine_relu), a tile of outputs (winograd_conv3x3) or 32 output channels of one input channel
// (winograd_transform_weights). Kernels are compiled once per instruction set into a namespace named after it.
#pragma once

#include "../kernels.h"

namespace adt {

// Items [first, last) of a kernel; `partials` is scratch for -log p, [k, B, chunks] in double, or null;
// `scratch` is a thread's own, of winograd_scratch() floats.
#define ADT_DECLARE_CPU_KERNELS(isa)                                                           \
  namespace cpu {                                                                              \
  namespace isa {                                                                              \
  int64_t chunks_per_example(DType dtype, const Shape& shape);                                 \
  void tanh_gaussian_sample(const SampleArgs&, int64_t first, int64_t last, double* partials); \
  void tanh_gaussian_sample_backward(const SampleBackwardArgs&, int64_t first, int64_t last);  \
  void tanh_gaussian_ascent(const AscentArgs&, int64_t first, int64_t last, double* partials); \
  void linf_step(const StepArgs&, int64_t first, int64_t last);                                \
  void l2_step(const StepArgs&, int64_t first, int64_t last);                                  \
  void momentum_linf_step(const StepArgs&, int64_t first, int64_t last);                       \
  void uniform_start(const UniformStartArgs&, int64_t first, int64_t last);                    \
  void normal(const NormalArgs&, int64_t first, int64_t last);                                 \
  void affine_relu(const AffineReluArgs&, int64_t first, int64_t last);                        \
  void affine_relu_backward(const AffineReluBackwardArgs&, int64_t first, int64_t last);       \
  int64_t winograd_tiles(const WinogradConvArgs&);                                             \
  int64_t winograd_scratch(const WinogradConvArgs&);                                           \
  void winograd_conv3x3(const WinogradConvArgs&, int64_t first, int64_t last, float* scratch); \
  void winograd_transform_weights(const WinogradWeightArgs&, int64_t first, int64_t last);     \
  }                                                                                            \
  }

constexpr int64_t kElementsPerItem = 4096;  // of linf_step and affine_relu
constexpr int64_t kPanel = 32;              // output channels that lie together in the weights of winograd_conv3x3

}  // namespace adt
