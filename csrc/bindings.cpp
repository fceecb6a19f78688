// The only file that sees Python. Arguments are checked in adt_fast; here integers become addresses.
//
// Every operator takes `device`, `stream` and `threads`: device -1 is the CPU (stream unused), otherwise a CUDA
// device (threads unused); winograd_* are for the CPU alone and take `threads` only. A shape is the tuple (batch,
// channels, pixels, channels_last).
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"

#ifndef ADT_MODULE_NAME
#define ADT_MODULE_NAME _C
#endif

namespace py = pybind11;

namespace {

using adt::DType;
using Address = uintptr_t;
using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, bool>;
using BallTuple = std::tuple<double, double, double>;                 // epsilon, lower, upper
using NoiseTuple = std::tuple<Address, int64_t, int64_t>;             // state, draw, first_example
using TargetTuple = std::tuple<int, Address, int>;                    // device, stream, threads
using ImagesTuple = std::tuple<int64_t, int64_t, int64_t, int64_t>;   // batch, height, width, channels
using StridesTuple = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // out, in, row, column

template <class T = void> T* pointer(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): Python has no other addresses
}

adt::Shape shape_of(const ShapeTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t)}; }
adt::Ball ball_of(const BallTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t)}; }
adt::Noise noise_of(const NoiseTuple& t) {
  return {pointer<const int64_t>(std::get<0>(t)), std::get<1>(t), std::get<2>(t)};
}
DType dtype_of(int code) { return static_cast<DType>(code); }

#if defined(ADT_WITH_CUDA)
void check(int error) {
  if (error != 0) throw std::runtime_error(std::string("CUDA error: ") + adt::cuda::error_string(error));
}
#define ADT_RUN(op, args, target)                          \
  do {                                                     \
    const auto [device, stream, threads] = target;         \
    py::gil_scoped_release release;                        \
    if (device < 0) {                                      \
      adt::cpu::op(args, threads);                         \
    } else {                                               \
      check(adt::cuda::op(args, device, pointer(stream))); \
    }                                                      \
  } while (false)
#else
#define ADT_RUN(op, args, target)                                                 \
  do {                                                                            \
    const auto [device, stream, threads] = target;                                \
    (void)stream;                                                                 \
    if (device >= 0) throw std::runtime_error("adt_fast was built without CUDA"); \
    py::gil_scoped_release release;                                               \
    adt::cpu::op(args, threads);                                                  \
  } while (false)
#endif

void tanh_gaussian_sample(const TargetTuple& target, int dtype, int storage, const ShapeTuple& shape,
                          const BallTuple& ball, const NoiseTuple& noise, int64_t samples, double log_offset, Address x,
                          Address mu, Address rho, Address x_adv, Address neg_log_density, Address partials) {
  const adt::SampleArgs args{dtype_of(dtype),  dtype_of(storage), shape_of(shape), ball_of(ball),
                             noise_of(noise),  samples,           log_offset,      pointer(x),
                             pointer(mu),      pointer(rho),      pointer(x_adv),  pointer(neg_log_density),
                             pointer(partials)};
  ADT_RUN(tanh_gaussian_sample, args, target);
}

void tanh_gaussian_sample_backward(const TargetTuple& target, int dtype, int storage, const ShapeTuple& shape,
                                   const BallTuple& ball, const NoiseTuple& noise, int64_t samples, double log_offset,
                                   Address grad_x_adv, Address grad_neg_log_density, Address x, Address mu, Address rho,
                                   Address grad_x, Address grad_mu, Address grad_rho) {
  const adt::SampleBackwardArgs args{dtype_of(dtype), dtype_of(storage),   shape_of(shape),
                                     ball_of(ball),   noise_of(noise),     samples,
                                     log_offset,      pointer(grad_x_adv), pointer(grad_neg_log_density),
                                     pointer(x),      pointer(mu),         pointer(rho),
                                     pointer(grad_x), pointer(grad_mu),    pointer(grad_rho)};
  ADT_RUN(tanh_gaussian_sample_backward, args, target);
}

void tanh_gaussian_ascent(const TargetTuple& target, int dtype, int storage, const ShapeTuple& shape,
                          const BallTuple& ball, const NoiseTuple& noise, int64_t samples, int update, double step_size,
                          double grad_scale, double entropy_weight, double log_offset, Address grad_x_adv, Address x,
                          Address mu, Address rho, Address accumulated_mu, Address accumulated_rho, int64_t next_draw,
                          Address x_adv, Address neg_log_density, Address partials) {
  const adt::AscentArgs args{dtype_of(dtype),
                             dtype_of(storage),
                             shape_of(shape),
                             ball_of(ball),
                             noise_of(noise),
                             samples,
                             static_cast<adt::Update>(update),
                             step_size,
                             grad_scale,
                             entropy_weight,
                             log_offset,
                             pointer(grad_x_adv),
                             pointer(x),
                             pointer(mu),
                             pointer(rho),
                             pointer(accumulated_mu),
                             pointer(accumulated_rho),
                             next_draw,
                             pointer(x_adv),
                             pointer(neg_log_density),
                             pointer(partials)};
  ADT_RUN(tanh_gaussian_ascent, args, target);
}

adt::StepArgs step_args(int dtype, int storage, int gradient, const ShapeTuple& shape, const BallTuple& ball,
                        double step_size, double decay, Address grad, Address x, Address x_adv, Address momentum) {
  return {dtype_of(dtype), dtype_of(storage), dtype_of(gradient), shape_of(shape), ball_of(ball),    step_size,
          decay,           pointer(grad),     pointer(x),         pointer(x_adv),  pointer(momentum)};
}

void linf_step(const TargetTuple& target, int dtype, int storage, int gradient, const ShapeTuple& shape,
               const BallTuple& ball, double step_size, Address grad, Address x, Address x_adv) {
  const auto args = step_args(dtype, storage, gradient, shape, ball, step_size, 0.0, grad, x, x_adv, 0);
  ADT_RUN(linf_step, args, target);
}

void l2_step(const TargetTuple& target, int dtype, int storage, int gradient, const ShapeTuple& shape,
             const BallTuple& ball, double step_size, Address grad, Address x, Address x_adv) {
  const auto args = step_args(dtype, storage, gradient, shape, ball, step_size, 0.0, grad, x, x_adv, 0);
  ADT_RUN(l2_step, args, target);
}

void momentum_linf_step(const TargetTuple& target, int dtype, int storage, int gradient, const ShapeTuple& shape,
                        const BallTuple& ball, double step_size, double decay, Address grad, Address x, Address x_adv,
                        Address momentum) {
  const auto args = step_args(dtype, storage, gradient, shape, ball, step_size, decay, grad, x, x_adv, momentum);
  ADT_RUN(momentum_linf_step, args, target);
}

void uniform_start(const TargetTuple& target, int dtype, int storage, const ShapeTuple& shape, const BallTuple& ball,
                   const NoiseTuple& noise, Address x, Address x_adv) {
  const adt::UniformStartArgs args{dtype_of(dtype), dtype_of(storage), shape_of(shape), ball_of(ball),
                                   noise_of(noise), pointer(x),        pointer(x_adv)};
  ADT_RUN(uniform_start, args, target);
}

void normal(const TargetTuple& target, int dtype, const ShapeTuple& shape, const NoiseTuple& noise, int64_t samples,
            Address out) {
  const adt::NormalArgs args{dtype_of(dtype), shape_of(shape), noise_of(noise), samples, pointer(out)};
  ADT_RUN(normal, args, target);
}

void affine_relu(const TargetTuple& target, int dtype, int storage, const ShapeTuple& shape, bool relu, Address x,
                 Address scale, Address shift, Address y) {
  const adt::AffineReluArgs args{dtype_of(dtype), dtype_of(storage), shape_of(shape), relu,
                                 pointer(x),      pointer(scale),    pointer(shift),  pointer(y)};
  ADT_RUN(affine_relu, args, target);
}

void affine_relu_backward(const TargetTuple& target, int dtype, int storage, const ShapeTuple& shape, Address grad_y,
                          Address y, Address scale, Address grad_x) {
  const adt::AffineReluBackwardArgs args{dtype_of(dtype), dtype_of(storage), shape_of(shape), pointer(grad_y),
                                         pointer(y),      pointer(scale),    pointer(grad_x)};
  ADT_RUN(affine_relu_backward, args, target);
}

void winograd_conv3x3(int threads, int storage, const ImagesTuple& images, int64_t out_channels, bool relu, Address x,
                      Address weights, Address bias, Address y) {
  const auto [batch, height, width, in_channels] = images;
  const adt::WinogradConvArgs args{dtype_of(storage),
                                   batch,
                                   height,
                                   width,
                                   in_channels,
                                   out_channels,
                                   relu,
                                   pointer(x),
                                   pointer<float>(weights),
                                   pointer<float>(bias),
                                   pointer(y)};
  py::gil_scoped_release release;
  adt::cpu::winograd_conv3x3(args, threads);
}

void winograd_transform_weights(int threads, int64_t in_channels, int64_t out_channels, const StridesTuple& strides,
                                bool flipped, Address weight, Address transformed) {
  const auto [out, in, row, column] = strides;
  const adt::WinogradWeightArgs args{
      in_channels, out_channels, out, in, row, column, flipped, pointer<float>(weight), pointer<float>(transformed)};
  py::gil_scoped_release release;
  adt::cpu::winograd_transform_weights(args, threads);
}

int64_t density_partials(const ShapeTuple& shape) {
#if defined(ADT_WITH_CUDA)
  return adt::cuda::density_partials(shape_of(shape));
#else
  (void)shape;
  throw std::runtime_error("adt_fast was built without CUDA");
#endif
}

py::tuple cuda_devices() {
#if defined(ADT_WITH_CUDA)
  int error = 0;
  const int count = adt::cuda::device_count(&error);
  return py::make_tuple(count, error == 0 ? "" : adt::cuda::error_string(error));
#else
  return py::make_tuple(0, "built without CUDA");
#endif
}

}  // namespace

PYBIND11_MODULE(ADT_MODULE_NAME, m) {
  m.doc() = "The native core of adt_fast: raw addresses in, nothing out.";
  m.def("tanh_gaussian_sample", &tanh_gaussian_sample);
  m.def("tanh_gaussian_sample_backward", &tanh_gaussian_sample_backward);
  m.def("tanh_gaussian_ascent", &tanh_gaussian_ascent);
  m.def("linf_step", &linf_step);
  m.def("l2_step", &l2_step);
  m.def("momentum_linf_step", &momentum_linf_step);
  m.def("uniform_start", &uniform_start);
  m.def("normal", &normal);
  m.def("affine_relu", &affine_relu);
  m.def("affine_relu_backward", &affine_relu_backward);
  m.def("winograd_conv3x3", &winograd_conv3x3);
  m.def("winograd_transform_weights", &winograd_transform_weights);
  m.def("density_partials", &density_partials, "Partial sums of -log p that each (sample, example) needs on CUDA.");
  m.def("cuda_devices", &cuda_devices, "(number of CUDA devices, why there are none or '').");
  m.def("instruction_set", &adt::cpu::instruction_set);
  m.def("instruction_sets", &adt::cpu::instruction_sets);
  m.def("use_instruction_set", &adt::cpu::use_instruction_set);
  m.def("thread_runtime", &adt::cpu::thread_runtime);
#if defined(ADT_WITH_CUDA)
  m.attr("with_cuda") = true;
  m.attr("cuda_architectures") = ADT_CUDA_ARCHITECTURES;
  m.attr("cuda_toolkit") = ADT_CUDA_TOOLKIT;
  m.attr("without_cuda_because") = "";
#else
  m.attr("with_cuda") = false;
  m.attr("cuda_architectures") = "";
  m.attr("cuda_toolkit") = "";
  m.attr("without_cuda_because") = ADT_WITHOUT_CUDA_BECAUSE;
#endif
  m.attr("compiler") = ADT_COMPILER;
}
