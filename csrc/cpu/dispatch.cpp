// Chooses the instruction set at run time, cuts the work into items and hands them to threads.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels.h"
#include "parallel.h"
#include "work.h"

namespace adt {

#if !defined(__x86_64__)
#define ADT_FOR_EACH_ISA(APPLY) APPLY(generic, "generic")
#elif defined(ADT_BASE_ISA_ONLY)
#define ADT_FOR_EACH_ISA(APPLY) APPLY(sse42, "sse4.2")
#else
#define ADT_FOR_EACH_ISA(APPLY) APPLY(avx512, "avx512") APPLY(avx2, "avx2") APPLY(sse42, "sse4.2")
#endif

#define ADT_DECLARE(isa, name) ADT_DECLARE_CPU_KERNELS(isa)
ADT_FOR_EACH_ISA(ADT_DECLARE)
#undef ADT_DECLARE

namespace cpu {

namespace {

struct KernelTable {
  const char* name;
  decltype(&ADT_BASE_ISA::chunks_per_example) chunks_per_example;
  decltype(&ADT_BASE_ISA::tanh_gaussian_sample) tanh_gaussian_sample;
  decltype(&ADT_BASE_ISA::tanh_gaussian_sample_backward) tanh_gaussian_sample_backward;
  decltype(&ADT_BASE_ISA::tanh_gaussian_ascent) tanh_gaussian_ascent;
  decltype(&ADT_BASE_ISA::linf_step) linf_step;
  decltype(&ADT_BASE_ISA::l2_step) l2_step;
  decltype(&ADT_BASE_ISA::momentum_linf_step) momentum_linf_step;
  decltype(&ADT_BASE_ISA::uniform_start) uniform_start;
  decltype(&ADT_BASE_ISA::normal) normal;
  decltype(&ADT_BASE_ISA::affine_relu) affine_relu;
  decltype(&ADT_BASE_ISA::affine_relu_backward) affine_relu_backward;
  decltype(&ADT_BASE_ISA::winograd_tiles) winograd_tiles;
  decltype(&ADT_BASE_ISA::winograd_scratch) winograd_scratch;
  decltype(&ADT_BASE_ISA::winograd_conv3x3) winograd_conv3x3;
  decltype(&ADT_BASE_ISA::winograd_transform_weights) winograd_transform_weights;
};

// Best first.
#define ADT_TABLE(isa, name)           \
  {name,                               \
   isa::chunks_per_example,            \
   isa::tanh_gaussian_sample,          \
   isa::tanh_gaussian_sample_backward, \
   isa::tanh_gaussian_ascent,          \
   isa::linf_step,                     \
   isa::l2_step,                       \
   isa::momentum_linf_step,            \
   isa::uniform_start,                 \
   isa::normal,                        \
   isa::affine_relu,                   \
   isa::affine_relu_backward,          \
   isa::winograd_tiles,                \
   isa::winograd_scratch,              \
   isa::winograd_conv3x3,              \
   isa::winograd_transform_weights},
constexpr KernelTable kTables[] = {ADT_FOR_EACH_ISA(ADT_TABLE)};
#undef ADT_TABLE

bool supported(const KernelTable& table) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(table.name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
  }
  if (std::strcmp(table.name, "avx2") == 0) {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // f16c is a name that GCC's __builtin_cpu_supports does not know
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  }
  return __builtin_cpu_supports("sse4.2");
#else
  (void)table;
  return true;
#endif
}

const KernelTable* best() {
  for (const KernelTable& table : kTables) {
    if (supported(table)) return &table;
  }
  throw std::runtime_error("this CPU has none of the instruction sets adt_fast was built for");
}

const KernelTable*& current() {
  static const KernelTable* table = best();
  return table;
}

// Below this many elements a call is too short to share.
constexpr int64_t kElementsPerThread = 16384;

int useful_threads(int64_t elements, int threads) {
  const int64_t useful = elements / kElementsPerThread;
  return useful < 1 ? 1 : static_cast<int>(useful < threads ? useful : threads);
}

// Work by chunks of examples: `repeats` is k where each chunk is visited once per sample.
template <class Body>
void for_each_chunk(DType dtype, const Shape& shape, int64_t repeats, int threads, const Body& body) {
  const int64_t items = shape.batch * current()->chunks_per_example(dtype, shape);
  parallel_for(items, useful_threads(shape.batch * shape.example_size() * repeats, threads), body);
}

void store_scalar(DType dtype, void* out, int64_t index, double value) {
  if (dtype == DType::float64) {
    static_cast<double*>(out)[index] = value;
  } else {
    static_cast<float*>(out)[index] = static_cast<float>(value);
  }
}

// Sums the chunks' shares of -log p in order: [k, B, chunks] -> [k, B].
void sum_partials(DType dtype, const std::vector<double>& partials, int64_t chunks, void* neg_log_density) {
  const int64_t rows = static_cast<int64_t>(partials.size()) / chunks;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[row * chunks + chunk];
    store_scalar(dtype, neg_log_density, row, sum);
  }
}

std::vector<double> density_partials(DType dtype, const Shape& shape, int64_t samples, const void* neg_log_density) {
  if (neg_log_density == nullptr) return {};
  return std::vector<double>(samples * shape.batch * current()->chunks_per_example(dtype, shape));
}

template <class Args, class Kernel> void draw(const Args& args, int64_t passes, int threads, Kernel kernel) {
  std::vector<double> partials = density_partials(args.dtype, args.shape, args.samples, args.neg_log_density);
  double* scratch = partials.empty() ? nullptr : partials.data();
  for_each_chunk(args.dtype, args.shape, passes * args.samples, threads,
                 [&](int64_t first, int64_t last) { kernel(args, first, last, scratch); });
  if (scratch != nullptr) {
    sum_partials(args.dtype, partials, current()->chunks_per_example(args.dtype, args.shape), args.neg_log_density);
  }
}

// Work by runs of elements in the order of memory.
template <class Args, class Kernel> void by_elements(const Args& args, int threads, Kernel kernel) {
  const int64_t elements = args.shape.batch * args.shape.example_size();
  parallel_for((elements + kElementsPerItem - 1) / kElementsPerItem, useful_threads(elements, threads),
               [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

template <class Kernel> void step_by_example(const StepArgs& args, int threads, Kernel kernel) {
  parallel_for(args.shape.batch, useful_threads(args.shape.batch * args.shape.example_size(), threads),
               [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

}  // namespace

void tanh_gaussian_sample(const SampleArgs& args, int threads) {
  draw(args, 1, threads, current()->tanh_gaussian_sample);
}

void tanh_gaussian_sample_backward(const SampleBackwardArgs& args, int threads) {
  for_each_chunk(args.dtype, args.shape, args.samples, threads,
                 [&](int64_t first, int64_t last) { current()->tanh_gaussian_sample_backward(args, first, last); });
}

void tanh_gaussian_ascent(const AscentArgs& args, int threads) {
  draw(args, args.x_adv == nullptr ? 1 : 2, threads, current()->tanh_gaussian_ascent);
}

void linf_step(const StepArgs& args, int threads) { by_elements(args, threads, current()->linf_step); }

void l2_step(const StepArgs& args, int threads) { step_by_example(args, threads, current()->l2_step); }

void momentum_linf_step(const StepArgs& args, int threads) {
  step_by_example(args, threads, current()->momentum_linf_step);
}

void uniform_start(const UniformStartArgs& args, int threads) {
  for_each_chunk(args.dtype, args.shape, 1, threads,
                 [&](int64_t first, int64_t last) { current()->uniform_start(args, first, last); });
}

void normal(const NormalArgs& args, int threads) {
  for_each_chunk(args.dtype, args.shape, args.samples, threads,
                 [&](int64_t first, int64_t last) { current()->normal(args, first, last); });
}

void affine_relu(const AffineReluArgs& args, int threads) { by_elements(args, threads, current()->affine_relu); }

void affine_relu_backward(const AffineReluBackwardArgs& args, int threads) {
  by_elements(args, threads, current()->affine_relu_backward);
}

void winograd_conv3x3(const WinogradConvArgs& args, int threads) {
  const int64_t tiles = current()->winograd_tiles(args);
  // Sixteen multiplications take no longer than an element of the other operators.
  const int64_t work = tiles * 36 * args.in_channels * args.out_channels / 16;
  const int64_t parts = useful_threads(work, threads), floats = current()->winograd_scratch(args);
  const std::unique_ptr<float[]> scratch(new float[parts * floats]);  // here: no one catches what a thread throws
  parallel_for(parts, static_cast<int>(parts), [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      current()->winograd_conv3x3(args, tiles * part / parts, tiles * (part + 1) / parts, &scratch[part * floats]);
    }
  });
}

void winograd_transform_weights(const WinogradWeightArgs& args, int threads) {
  const int64_t panels = (args.out_channels + kPanel - 1) / kPanel;
  parallel_for(panels * args.in_channels, useful_threads(panels * args.in_channels * kPanel * 36, threads),
               [&](int64_t first, int64_t last) { current()->winograd_transform_weights(args, first, last); });
}

const char* instruction_set() { return current()->name; }

const char* instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const KernelTable& table : kTables) joined += (joined.empty() ? "" : ",") + std::string(table.name);
    return joined;
  }();
  return names.c_str();
}

void use_instruction_set(const char* name) {
  for (const KernelTable& table : kTables) {
    if (std::strcmp(table.name, name) != 0) continue;
    if (!supported(table)) throw std::invalid_argument(std::string("this CPU does not support ") + name);
    current() = &table;
    return;
  }
  throw std::invalid_argument(std::string("instruction set must be one of ") + instruction_sets() + ", got " + name);
}

}  // namespace cpu
}  // namespace adt
