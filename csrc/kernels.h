// What the native core computes: one argument struct and one launcher per operator and device.
//
// Nothing here knows of Python or torch: raw addresses, sizes, and the stream last. Shapes are checked by the caller
// (adt_fast/_operators/checked.py). Every tensor of an operator has the same memory layout; k samples are k such slabs,
// one after another: x is [B, C, P], x_adv is [k, B, C, P] (or [B, P, C] and [k, B, P, C] when channels_last).
#pragma once

#include "math/lanes.h"

namespace adt {

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

struct Shape {
  int64_t batch;     // B
  int64_t channels;  // C
  int64_t pixels;    // P, the product of the sizes after the channel
  bool channels_last;
  ADT_INLINE int64_t example_size() const { return channels * pixels; }  // D
};

// x_adv lies within epsilon of x (L-infinity, or L2 for l2_step) and within [lower, upper].
struct Ball {
  double epsilon, lower, upper;
};

// Which normals to use: state points at int64 {seed, offset} in the device's own memory, so that a captured CUDA
// graph draws new noise on each replay. `draw` is added to the offset; `first_example` is the index of row 0.
struct Noise {
  const int64_t* state;
  int64_t draw;
  int64_t first_example;
};

// T below is the computing type `dtype` (float32 or float64); S is `storage`, the type of x_adv and of its gradient:
// T itself, or bfloat16 or float16 when T is float32.

// Draws x_adv and, where the pointer is not null, -log p(delta) per sample and example.
struct SampleArgs {
  DType dtype, storage;
  Shape shape;
  Ball ball;
  Noise noise;
  int64_t samples;        // k
  double log_offset;      // added inside the logarithms of the density; 0 is exact
  const void* x;          // T [B, C, P]
  const void* mu;         // T [B, C, P]
  const void* rho;        // T [B, C, P]
  void* x_adv;            // S [k, B, C, P]
  void* neg_log_density;  // T [k, B] or null
  void* partials;         // CUDA with neg_log_density: T [k, B, density_partials(shape)]; else null
};

// Vector-Jacobian product of the above; the noise is drawn again, not stored.
struct SampleBackwardArgs {
  DType dtype, storage;
  Shape shape;
  Ball ball;
  Noise noise;
  int64_t samples;
  double log_offset;
  const void* grad_x_adv;            // S [k, B, C, P]
  const void* grad_neg_log_density;  // T [k, B] or null
  const void* x;
  const void* mu;
  const void* rho;
  void* grad_x;  // T [B, C, P], each of the three may be null
  void* grad_mu;
  void* grad_rho;
};

enum class Update : int { adam = 0, sign = 1 };

// One ascent step on (mu, rho) of grad_scale * L + entropy_weight * sum over samples and elements of -log p, in place;
// then, when x_adv is not null, the next k samples from the new distribution, with noise at `next_draw`.
struct AscentArgs {
  DType dtype, storage;
  Shape shape;
  Ball ball;
  Noise noise;
  int64_t samples;
  Update update;
  double step_size;
  double grad_scale;
  double entropy_weight;
  double log_offset;       // as in SampleArgs
  const void* grad_x_adv;  // S [k, B, C, P]: d L / d x_adv
  const void* x;           // T [B, C, P]
  void* mu;                // T [B, C, P], updated
  void* rho;               // T [B, C, P], updated
  void* accumulated_mu;    // T [B, C, P] or null: running sum of the gradients of mu, updated, drives the step
  void* accumulated_rho;   // likewise for rho; null if and only if accumulated_mu is
  int64_t next_draw;
  void* x_adv;            // S [k, B, C, P] or null; must not overlap grad_x_adv
  void* neg_log_density;  // T [k, B] or null
  void* partials;         // as in SampleArgs
};

// Projected gradient steps on x_adv, in place. A negative step_size descends.
struct StepArgs {
  DType dtype;     // T of x and of momentum
  DType storage;   // S of x_adv: T, or 16-bit when T is float32
  DType gradient;  // of grad: T or S; 16-bit gradients of a float32 x_adv are the usual case
  Shape shape;     // elementwise in memory order; only L2 and L1 norms look at the example
  Ball ball;
  double step_size;
  double decay;      // momentum_linf_step only
  const void* grad;  // [B, C, P]
  const void* x;     // T [B, C, P]
  void* x_adv;       // S [B, C, P], updated
  void* momentum;    // T [B, C, P], updated; momentum_linf_step only, else null
};

// x_adv = clamp(x + epsilon * uniform(-1, 1), lower, upper).
struct UniformStartArgs {
  DType dtype, storage;
  Shape shape;
  Ball ball;
  Noise noise;
  const void* x;  // T [B, C, P]
  void* x_adv;    // S [B, C, P]
};

// The normals themselves, as the sampler sees them.
struct NormalArgs {
  DType dtype;
  Shape shape;
  Noise noise;
  int64_t samples;
  void* out;  // T [k, B, C, P]
};

// y = scale[c] x + shift[c], and max(0, y) with `relu`: a BatchNorm in eval mode, and the ReLU behind it. Here S is the
// type of x and y.
struct AffineReluArgs {
  DType dtype, storage;
  Shape shape;  // C may not be folded into P where there is one pixel: every channel has its own coefficients
  bool relu;
  const void* x;      // S [B, C, P]
  const void* scale;  // T [C]
  const void* shift;  // T [C]
  void* y;            // S [B, C, P]; must not overlap x
};

// grad_x = scale[c] grad_y, zero where y <= 0.
struct AffineReluBackwardArgs {
  DType dtype, storage;
  Shape shape;
  const void* grad_y;  // S [B, C, P]
  const void* y;       // S [B, C, P], or null without ReLU
  const void* scale;   // T [C]
  void* grad_x;        // S [B, C, P]; must not overlap grad_y or y
};

// A 3x3 convolution of stride 1 and padding 1 by Winograd's F(4x4, 3x3), on the CPU alone. Its weights are transformed
// once, by the second of these. `flipped` and with the strides of their channels exchanged, they make it the gradient
// with respect to the input.
struct WinogradConvArgs {
  DType storage;  // S of x and y: float32, bfloat16 or float16; the arithmetic is in float32
  int64_t batch, height, width;
  int64_t in_channels, out_channels;
  bool relu;
  const void* x;         // S [B, H, W, Cin]
  const float* weights;  // [ceil(Cout / 32), 36, Cin, 32], from winograd_transform_weights
  const float* bias;     // [Cout] or null
  void* y;               // S [B, H, W, Cout]; must not overlap x
};

struct WinogradWeightArgs {
  int64_t in_channels, out_channels;                         // of the convolution that will use them
  int64_t out_stride, in_stride, row_stride, column_stride;  // of weight, in elements
  bool flipped;                                              // by 180 degrees
  const float* weight;
  float* transformed;  // [ceil(Cout / 32), 36, Cin, 32]
};

namespace cpu {
void tanh_gaussian_sample(const SampleArgs&, int threads);
void tanh_gaussian_sample_backward(const SampleBackwardArgs&, int threads);
void tanh_gaussian_ascent(const AscentArgs&, int threads);
void linf_step(const StepArgs&, int threads);
void l2_step(const StepArgs&, int threads);
void momentum_linf_step(const StepArgs&, int threads);
void uniform_start(const UniformStartArgs&, int threads);
void normal(const NormalArgs&, int threads);
void affine_relu(const AffineReluArgs&, int threads);
void affine_relu_backward(const AffineReluBackwardArgs&, int threads);
void winograd_conv3x3(const WinogradConvArgs&, int threads);
void winograd_transform_weights(const WinogradWeightArgs&, int threads);

const char* instruction_set();               // the one in use, "avx512", "avx2", "sse4.2" or "generic"
const char* instruction_sets();              // those built, comma separated
void use_instruction_set(const char* name);  // throws std::invalid_argument if not built or not supported here
const char* thread_runtime();                // who runs the threads: "openmp (shared with torch)", "std::thread"
}  // namespace cpu

// Each launcher returns a cudaError_t as an int: 0 is success. They neither allocate nor synchronise.
namespace cuda {
int tanh_gaussian_sample(const SampleArgs&, int device, void* stream);
int tanh_gaussian_sample_backward(const SampleBackwardArgs&, int device, void* stream);
int tanh_gaussian_ascent(const AscentArgs&, int device, void* stream);
int linf_step(const StepArgs&, int device, void* stream);
int l2_step(const StepArgs&, int device, void* stream);
int momentum_linf_step(const StepArgs&, int device, void* stream);
int uniform_start(const UniformStartArgs&, int device, void* stream);
int normal(const NormalArgs&, int device, void* stream);
int affine_relu(const AffineReluArgs&, int device, void* stream);
int affine_relu_backward(const AffineReluBackwardArgs&, int device, void* stream);

int64_t density_partials(const Shape&);  // at most so many partial sums of -log p per (sample, example)
const char* error_string(int error);
int device_count(int* error);  // 0 and the error where there is no driver
}  // namespace cuda

}  // namespace adt
