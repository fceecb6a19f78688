// 3x3 convolution, stride 1, padding 1, of NHWC tensors by Winograd's F(4x4, 3x3).
//
// A thread takes its tiles in groups of as many as the product with a panel of weights keeps sums in registers for:
//   input transform:   patches -> V [36, Cin / 16, tile, 16]
//   36 products:       V, W [panel, 36, Cin, 32] -> M [36, tile, 32], for each panel
//   output transform:  M -> y, with bias and relu
// V and M stay in the second-level cache; the weights stream from there or, when they are many, from the third level.
// A tile's arithmetic does not depend on its group, so results do not depend on the number of threads.
#include "storage.h"
#include "winograd.h"
#include "work.h"

#include <cstring>

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace {

// Tiles of a group: with two vectors of sums for each, and three for factors, they fill the registers.
#if defined(__AVX512F__)
constexpr int kGroup = 14;
#else
constexpr int kGroup = 6;
#endif
constexpr int kLine = 16;                                // floats of a cache line
constexpr int kChunkStride = kGroup * kLine;             // of V, from 16 channels to the next 16
constexpr int kProductStride = kGroup * kPanel + kLine;  // of M, from one frequency to the next

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats of V from one frequency to the next. Here as in M, an odd number of cache lines, or the 36 lines which a
// transform has in hand would compete for a few sets of the first-level cache.
int64_t frequency_stride(int64_t in_channels) { return (ceil_div(in_channels, kLine) * kGroup | 1) * kLine; }

// As many channels as a vector has, or the `left` that there are.
template <class S> ADT_INLINE Floats load_channels(const S* p, int64_t left) {
  if (left >= kLanes) return load_vector(p, Floats{});
  Floats v{};
  for (int64_t i = 0; i < left; ++i) v[i] = load_as(p + i, 0.0f);
  return v;
}
template <class S> ADT_INLINE void store_channels(S* p, Floats v, int64_t left) {
  if (left >= kLanes) return store_vector(p, v);
  for (int64_t i = 0; i < left; ++i) store_as(p + i, v[i]);
}

// B' times a column of d.
ADT_INLINE void transform_input(const Floats (&d)[kInputTile], Floats (&v)[kInputTile]) {
  constexpr float pp = kP * kP, qq = kQ * kQ;
  const Floats even_p = d[4] - qq * d[2], odd_p = d[3] - qq * d[1];
  const Floats even_q = d[4] - pp * d[2], odd_q = d[3] - pp * d[1];
  v[0] = d[4] - (pp + qq) * d[2] + (pp * qq) * d[0];
  v[1] = even_p + kP * odd_p;
  v[2] = even_p - kP * odd_p;
  v[3] = even_q + kQ * odd_q;
  v[4] = even_q - kQ * odd_q;
  v[5] = d[5] - (pp + qq) * d[3] + (pp * qq) * d[1];
}

// A' times a column of m.
ADT_INLINE void transform_output(const Floats (&m)[kInputTile], Floats (&y)[kOutputTile]) {
  constexpr float pp = kP * kP, qq = kQ * kQ;
  const Floats even_p = m[1] + m[2], odd_p = m[1] - m[2];
  const Floats even_q = m[3] + m[4], odd_q = m[3] - m[4];
  y[0] = m[0] + even_p + even_q;
  y[1] = kP * odd_p + kQ * odd_q;
  y[2] = pp * even_p + qq * even_q;
  y[3] = m[5] + (pp * kP) * odd_p + (qq * kQ) * odd_q;
}

struct Tiles {
  int64_t height, width, down, across;
  explicit Tiles(const WinogradConvArgs& args)
      : height(args.height),
        width(args.width),
        down(ceil_div(args.height, kOutputTile)),
        across(ceil_div(args.width, kOutputTile)) {}
};

// Of a tile's first output.
struct Position {
  int64_t row, column;  // in its image
  int64_t pixel;        // in [B, H, W]

  Position() = default;
  Position(const Tiles& tiles, int64_t tile)
      : row(tile / tiles.across % tiles.down * kOutputTile),
        column(tile % tiles.across * kOutputTile),
        pixel((tile / (tiles.down * tiles.across) * tiles.height + row) * tiles.width + column) {}
};

struct Group {
  int64_t size = 0;
  Position tile[kGroup];

  // The index-th of `count` nearly equal parts of [first, last).
  Group(const Tiles& tiles, int64_t first, int64_t last, int64_t index, int64_t count) {
    const int64_t begin = first + (last - first) * index / count, end = first + (last - first) * (index + 1) / count;
    for (int64_t t = begin; t < end; ++t) tile[size++] = Position(tiles, t);
  }
};

// Where the pixels of a tile's patch are; those outside of the image are at `zeros`.
template <class S> struct Patch {
  const S* pixel[kInputTile][kInputTile];

  Patch(const WinogradConvArgs& args, const Position& tile, const S* zeros) {
    for (int i = 0; i < kInputTile; ++i) {
      const int64_t row = tile.row - 1 + i;
      for (int j = 0; j < kInputTile; ++j) {
        const int64_t column = tile.column - 1 + j, index = tile.pixel + (i - 1) * args.width + j - 1;
        const bool inside = row >= 0 && row < args.height && column >= 0 && column < args.width;
        pixel[i][j] = inside ? static_cast<const S*>(args.x) + index * args.in_channels : zeros;
      }
    }
  }
};

// B' d B of a vector of channels, from c on, of which `left` exist.
template <class S>
ADT_INLINE void transform_channels(const Patch<S>& patch, int64_t c, int64_t left, int64_t stride, float* v) {
  Floats columns[kInputTile][kInputTile];  // [column, row]
#pragma GCC unroll 6
  for (int j = 0; j < kInputTile; ++j) {
    Floats d[kInputTile];
    for (int i = 0; i < kInputTile; ++i) d[i] = load_channels(patch.pixel[i][j] + c, left);
    transform_input(d, columns[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kInputTile; ++i) {
    Floats row[kInputTile], transformed[kInputTile];
    for (int j = 0; j < kInputTile; ++j) row[j] = columns[j][i];
    transform_input(row, transformed);
    for (int j = 0; j < kInputTile; ++j) store_vector(v + (i * kInputTile + j) * stride, transformed[j]);
  }
}

// B' d B of a patch, to v[frequency, chunk, 16].
template <class S> void transform_patch(const Patch<S>& patch, int64_t in_channels, float* v) {
  const int64_t stride = frequency_stride(in_channels), whole = in_channels / kLanes * kLanes;
  const auto place = [&](int64_t c) { return v + c / kLine * kChunkStride + c % kLine; };
  for (int64_t c = 0; c < whole; c += kLanes) transform_channels(patch, c, kLanes, stride, place(c));
  if (whole < in_channels) transform_channels(patch, whole, in_channels - whole, stride, place(whole));
}

// m[tile, 32] = v[chunk, tile, 16] w[Cin, 32] for one frequency, in kVectors of the columns.
template <int kTiles, int kVectors> void multiply(const float* v, const float* w, int64_t in_channels, float* m) {
  Floats sum[kTiles][kVectors] = {};
  for (int64_t c = 0; c < in_channels; c += kLine, v += kChunkStride) {
    const int64_t left = in_channels - c, depth = left < kLine ? left : kLine;
    for (int64_t k = 0; k < depth; ++k, w += kPanel) {
      Floats factor[kVectors];
      for (int j = 0; j < kVectors; ++j) factor[j] = load_vector(w + j * kLanes, Floats{});
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
        for (int j = 0; j < kVectors; ++j) sum[t][j] += v[t * kLine + k] * factor[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t) {
    for (int j = 0; j < kVectors; ++j) store_vector(m + t * kPanel + j * kLanes, sum[t][j]);
  }
}

using Multiply = void (*)(const float* v, const float* w, int64_t in_channels, float* m);

// multiply() for each number of tiles, from 1 to kGroup.
template <int kVectors, size_t... t> Multiply multiply_for(int64_t tiles, std::index_sequence<t...>) {
  static constexpr Multiply kTable[] = {multiply<t + 1, kVectors>...};
  return kTable[tiles - 1];  // NOLINT(clang-analyzer-security.ArrayBound): no part of a Group's is empty
}

// The products of a group for one frequency and one panel, of which `columns` are in use.
void multiply_panel(int64_t tiles, const float* v, const float* w, int64_t in_channels, int64_t columns, float* m) {
  constexpr auto kSizes = std::make_index_sequence<kGroup>();
  const Multiply pair = multiply_for<2>(tiles, kSizes), single = multiply_for<1>(tiles, kSizes);
  for (int64_t n = 0; n < columns; n += 2 * kLanes) {
    (columns - n > kLanes ? pair : single)(v, w + n, in_channels, m + n);
  }
}

// A' m A of a vector of channels, for the `height` x `width` outputs that exist. `edge` is false where all do.
template <bool edge, class S>
ADT_INLINE void transform_products(const WinogradConvArgs& args, const float* m, Floats bias, int64_t height,
                                   int64_t width, int64_t left, S* y) {
  Floats columns[kInputTile][kOutputTile];  // [column, row]
#pragma GCC unroll 6
  for (int j = 0; j < kInputTile; ++j) {
    Floats products[kInputTile];
    for (int i = 0; i < kInputTile; ++i) {
      products[i] = load_vector(m + (i * kInputTile + j) * kProductStride, Floats{});
    }
    transform_output(products, columns[j]);
  }
  const auto lower = splat<Floats>(args.relu ? 0.0 : -__builtin_inf());
#pragma GCC unroll 4
  for (int i = 0; i < kOutputTile; ++i) {
    if (edge && i >= height) break;
    Floats row[kInputTile], out[kOutputTile];
    for (int j = 0; j < kInputTile; ++j) row[j] = columns[j][i];
    transform_output(row, out);
    for (int j = 0; j < kOutputTile; ++j) {
      if (edge && j >= width) break;
      store_channels(y + (i * args.width + j) * args.out_channels, at_least(out[j] + bias, lower), left);
    }
  }
}

// What a thread does with a group, in its scratch memory: V, M and the pixels around an image, zeros [Cin].
template <class S> class Worker {
  const WinogradConvArgs& args_;
  const Tiles tiles_;
  const int64_t frequency_stride_;
  float *const v_, *const m_;
  const S* const zeros_;

  static float* aligned(float* p) { return p + (-reinterpret_cast<uintptr_t>(p) / sizeof(float)) % kLine; }

 public:
  Worker(const WinogradConvArgs& args, float* scratch)
      : args_(args),
        tiles_(args),
        frequency_stride_(frequency_stride(args.in_channels)),
        v_(aligned(scratch)),
        m_(v_ + kFrequencies * frequency_stride_),
        zeros_(
            static_cast<const S*>(std::memset(m_ + kFrequencies * kProductStride, 0, args.in_channels * sizeof(S)))) {}

  static int64_t scratch_floats(const WinogradConvArgs& args) {
    return kLine + kFrequencies * (frequency_stride(args.in_channels) + kProductStride) + args.in_channels;
  }

  void compute(int64_t first, int64_t last) {
    const int64_t groups = ceil_div(last - first, kGroup);
    for (int64_t g = 0; g < groups; ++g) {
      const Group group(tiles_, first, last, g, groups);
      load(group);
      for (int64_t channel = 0; channel < args_.out_channels; channel += kPanel) {
        multiply_group(group, channel);
        store(group, channel);
      }
    }
  }

 private:
  int64_t panel_columns(int64_t channel) const {
    const int64_t left = args_.out_channels - channel;
    return left < kPanel ? left : kPanel;
  }

  void load(const Group& group) {
    for (int64_t t = 0; t < group.size; ++t) {
      transform_patch(Patch<S>(args_, group.tile[t], zeros_), args_.in_channels, v_ + t * kLine);
    }
  }

  void multiply_group(const Group& group, int64_t channel) {
    const float* w = args_.weights + channel * kFrequencies * args_.in_channels;
    for (int f = 0; f < kFrequencies; ++f, w += args_.in_channels * kPanel) {
      multiply_panel(group.size, v_ + f * frequency_stride_, w, args_.in_channels, panel_columns(channel),
                     m_ + f * kProductStride);
    }
  }

  void store(const Group& group, int64_t channel) {
    for (int64_t t = 0; t < group.size; ++t) {
      const Position& tile = group.tile[t];
      const int64_t height = args_.height - tile.row, width = args_.width - tile.column;
      S* y = static_cast<S*>(args_.y) + tile.pixel * args_.out_channels + channel;
      for (int64_t c = 0; c < panel_columns(channel); c += kLanes) {
        const int64_t left = panel_columns(channel) - c;
        const Floats bias = args_.bias == nullptr ? Floats{} : load_channels(args_.bias + channel + c, left);
        const float* m = m_ + t * kPanel + c;
        if (height >= kOutputTile && width >= kOutputTile && left >= kLanes) {
          transform_products<false>(args_, m, bias, height, width, kLanes, y + c);
        } else {
          transform_products<true>(args_, m, bias, height, width, left, y + c);
        }
      }
    }
  }
};

}  // namespace

namespace cpu {
namespace ADT_ISA {

int64_t winograd_tiles(const WinogradConvArgs& args) {
  const Tiles tiles(args);
  return args.batch * tiles.down * tiles.across;
}

int64_t winograd_scratch(const WinogradConvArgs& args) { return Worker<float>::scratch_floats(args); }

void winograd_conv3x3(const WinogradConvArgs& args, int64_t first, int64_t last, float* scratch) {
  with_storage_type<Floats>(
      args.storage, [&](auto stored) { Worker<typename decltype(stored)::type>(args, scratch).compute(first, last); });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
