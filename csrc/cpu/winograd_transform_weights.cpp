// G g G' of 3x3 weights, rounded once from double: [Cout, Cin, 3, 3] -> [panels, 36, Cin, 32].
#include "winograd.h"
#include "work.h"

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace {

constexpr int kColumns = kLanes / 2;  // output channels done at once
using Doubles __attribute__((vector_size(8 * kColumns))) = double;
using HalfFloats __attribute__((vector_size(4 * kColumns))) = float;

// G times a column of g.
ADT_INLINE void transform_filter(const Doubles (&g)[3], Doubles (&u)[kInputTile]) {
  constexpr double p = kP, q = kQ, pp = p * p, qq = q * q;
  constexpr double scale_p = 1 / (2 * pp * (pp - qq)), scale_q = 1 / (2 * qq * (qq - pp));
  const Doubles even_p = scale_p * (g[0] + pp * g[2]), odd_p = (scale_p * p) * g[1];
  const Doubles even_q = scale_q * (g[0] + qq * g[2]), odd_q = (scale_q * q) * g[1];
  u[0] = g[0] / (pp * qq);
  u[1] = even_p + odd_p;
  u[2] = even_p - odd_p;
  u[3] = even_q + odd_q;
  u[4] = even_q - odd_q;
  u[5] = g[2];
}

// One weight of each of `count` output channels; the others' are zero.
ADT_INLINE Doubles load_weights(const float* weight, int64_t out_stride, int64_t count) {
  Doubles g{};
  for (int64_t n = 0; n < kColumns && n < count; ++n) g[n] = static_cast<double>(weight[n * out_stride]);
  return g;
}

// One input channel and `count` output channels, to out[frequency, Cin, 32].
void transform_kernels(const WinogradWeightArgs& args, const float* weight, int64_t count, float* out) {
  Doubles rows[3][kInputTile];  // g G'
  for (int i = 0; i < 3; ++i) {
    Doubles g[3];
    for (int j = 0; j < 3; ++j) {
      const int row = args.flipped ? 2 - i : i, column = args.flipped ? 2 - j : j;
      g[j] = load_weights(weight + row * args.row_stride + column * args.column_stride, args.out_stride, count);
    }
    transform_filter(g, rows[i]);
  }
  for (int j = 0; j < kInputTile; ++j) {
    const Doubles column[3] = {rows[0][j], rows[1][j], rows[2][j]};
    Doubles u[kInputTile];
    transform_filter(column, u);
    for (int i = 0; i < kInputTile; ++i) {
      const HalfFloats rounded = __builtin_convertvector(u[i], HalfFloats);
      __builtin_memcpy(out + (i * kInputTile + j) * args.in_channels * kPanel, &rounded, sizeof rounded);
    }
  }
}

}  // namespace

namespace cpu {
namespace ADT_ISA {

// An item is one input channel of one panel of output channels. Columns past the last output channel are zero.
void winograd_transform_weights(const WinogradWeightArgs& args, int64_t first, int64_t last) {
  for (int64_t item = first; item < last; ++item) {
    const int64_t panel = item / args.in_channels, in = item % args.in_channels;
    float* out = args.transformed + (panel * kFrequencies * args.in_channels + in) * kPanel;
    for (int64_t n = 0; n < kPanel; n += kColumns) {
      const int64_t channel = panel * kPanel + n, left = args.out_channels - channel;
      const float* weight = args.weight + in * args.in_stride + (left > 0 ? channel * args.out_stride : 0);
      transform_kernels(args, weight, left, out + n);
    }
  }
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
