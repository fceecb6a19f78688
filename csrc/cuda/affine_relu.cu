// A per-channel affine map and a ReLU in one pass, y = max(0, scale[c] x + shift[c]), and its gradient in x.
//
// Memory: forward reads x and writes y, backward reads grad_y and y and writes grad_x, each once; they are bound by it.
//
// Threads: one per tile, for several examples in a row: their coefficients are the same, so they are read once.
#include <limits>
#include <type_traits>

#include "access.h"

namespace adt {
namespace cuda {

namespace {

// Four neighbouring channels of one pixel, channels last: 4 contiguous elements.
struct ChannelTile {
  static constexpr int kChannels = kPack;
  static constexpr int kElements = kPack;

  int64_t offset;    // of the first element within the example
  uint32_t channel;  // the first of those owned

  static int64_t count(const Shape& shape) { return shape.example_size() / kElements; }

  __device__ __forceinline__ ChannelTile(const Shape& shape, const Divisor& run, uint32_t index)
      : offset(static_cast<int64_t>(index) * kElements) {
    channel = static_cast<uint32_t>(offset - run.quotient(index) * shape.channels);
  }

  template <class T, class S> __device__ __forceinline__ void load(const S* example, T (&values)[kElements]) const {
    load_pack(example + offset, values);
  }

  template <class T, class S> __device__ __forceinline__ void store(S* example, const T (&values)[kElements]) const {
    store_pack(example + offset, values);
  }
};

// An array [C] at the channels that a tile owns.
template <class T, class Tile> struct Coefficients {
  T value[Tile::kChannels];

  __device__ __forceinline__ Coefficients(const void* array, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < Tile::kChannels; ++i) value[i] = static_cast<const T*>(array)[tile.channel + i];
  }
  __device__ __forceinline__ T of_element(int i) const { return value[i % Tile::kChannels]; }
};

// Of how many examples a thread reads a tile before it writes the first: four where a tile is a single access.
template <class Tile> constexpr int kInFlight = 1;
template <> constexpr int kInFlight<VectorTile<1>> = 4;
template <> constexpr int kInFlight<ChannelTile> = 4;

// Blocks that fill the largest of today's GPUs, of less than 192 multiprocessors with 2048 threads. With fewer, a
// thread does no more examples than it must.
constexpr int64_t kFullGrid = 192 * 2048 / kTileThreads;

template <class Tile> Partition partition_of(const Shape& shape) {
  Partition partition = Partition::of<Tile>(shape);
  const int64_t filling = divide_up(kFullGrid, partition.blocks.divisor);
  const int64_t sharing = divide_up(shape.batch, kInFlight<Tile>);
  const int64_t wanted = filling > sharing ? filling : sharing;
  if (partition.examples_held > wanted) partition.examples_held = wanted;
  if constexpr (std::is_same_v<Tile, ChannelTile>) partition.run = Divisor(shape.channels / kPack);
  if constexpr (std::is_same_v<Tile, VectorTile<1>>) {
    partition.run = Divisor(shape.pixels / kPack);  // a single channel may pass for channels last
  }
  return partition;
}

// Calls read(slot, start) for the next few examples of a thread, then write(slot, start), until there are no more; an
// example starts at element `start`.
template <class Tile, class Read, class Write>
__device__ __forceinline__ void for_each_example(const Shape& shape, const Partition& partition, Read read,
                                                 Write write) {
  const int64_t held = partition.examples_held;
  for (int64_t first = partition.first_example(); first < shape.batch; first += kInFlight<Tile> * held) {
#pragma unroll
    for (int slot = 0; slot < kInFlight<Tile>; ++slot) {
      const int64_t example = first + slot * held;
      if (example < shape.batch) read(slot, example * partition.example_size);
    }
#pragma unroll
    for (int slot = 0; slot < kInFlight<Tile>; ++slot) {
      const int64_t example = first + slot * held;
      if (example < shape.batch) write(slot, example * partition.example_size);
    }
  }
}

// `floor` is 0, or minus infinity without ReLU.
template <class T, class S, class Tile>
__global__ void __launch_bounds__(kTileThreads) affine_relu_kernel(AffineReluArgs args, T floor, Partition partition) {
  const int64_t tile_index = partition.tile();
  if (tile_index >= partition.tiles) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Coefficients<T, Tile> scale(args.scale, tile), shift(args.shift, tile);
  T x[kInFlight<Tile>][Tile::kElements];
  const auto read = [&](int slot, int64_t start) { tile.load(static_cast<const S*>(args.x) + start, x[slot]); };
  const auto write = [&](int slot, int64_t start) {
    T y[Tile::kElements];
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      y[i] = at_least<T>(x[slot][i] * scale.of_element(i) + shift.of_element(i), floor);
    }
    tile.store(static_cast<S*>(args.y) + start, y);
  };
  for_each_example<Tile>(args.shape, partition, read, write);
}

// A NaN in y lets the gradient pass, as torch.relu's does.
template <bool kMasked, class T, class S, class Tile>
__global__ void __launch_bounds__(kTileThreads)
    affine_relu_backward_kernel(AffineReluBackwardArgs args, Partition partition) {
  const int64_t tile_index = partition.tile();
  if (tile_index >= partition.tiles) return;
  const Tile tile(args.shape, partition.run, static_cast<uint32_t>(tile_index));
  const Coefficients<T, Tile> scale(args.scale, tile);
  T grad[kInFlight<Tile>][Tile::kElements], y[kInFlight<Tile>][Tile::kElements];
  const auto read = [&](int slot, int64_t start) {
    tile.load(static_cast<const S*>(args.grad_y) + start, grad[slot]);
    if (kMasked) tile.load(static_cast<const S*>(args.y) + start, y[slot]);
  };
  const auto write = [&](int slot, int64_t start) {
    T grad_x[Tile::kElements];
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      const T passed = grad[slot][i] * scale.of_element(i);
      grad_x[i] = kMasked && y[slot][i] <= T(0) ? T(0) : passed;
    }
    tile.store(static_cast<S*>(args.grad_x) + start, grad_x);
  };
  for_each_example<Tile>(args.shape, partition, read, write);
}

// Calls f(Type<Tile>) with the widest tile, or with ChannelTile where channels are last in packs.
template <class T, class F> void with_affine_tile(const Shape& shape, bool all_aligned, F f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (all_aligned && shape.channels_last && shape.channels % kPack == 0) return f(Type<ChannelTile>{});
  }
  with_tile<T>(shape, all_aligned, f);
}

}  // namespace

int affine_relu(const AffineReluArgs& args, int device, void* stream) {
  if (args.shape.batch * args.shape.example_size() == 0) return 0;
  Launcher launcher(device, stream);
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    with_affine_tile<T>(args.shape, aligned<S>(args.x) && aligned<S>(args.y), [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = partition_of<Tile>(args.shape);
      const T floor = args.relu ? T(0) : -std::numeric_limits<T>::infinity();
      launcher.run(affine_relu_kernel<T, S, Tile>, partition.grid(), kTileThreads, args, floor, partition);
    });
  });
  return launcher.error();
}

int affine_relu_backward(const AffineReluBackwardArgs& args, int device, void* stream) {
  if (args.shape.batch * args.shape.example_size() == 0) return 0;
  Launcher launcher(device, stream);
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const bool all_aligned = aligned<S>(args.grad_y) && aligned<S>(args.y) && aligned<S>(args.grad_x);
    with_affine_tile<T>(args.shape, all_aligned, [&](auto kind) {
      using Tile = typename decltype(kind)::type;
      const Partition partition = partition_of<Tile>(args.shape);
      const auto kernel = args.y == nullptr ? affine_relu_backward_kernel<false, T, S, Tile>
                                            : affine_relu_backward_kernel<true, T, S, Tile>;
      launcher.run(kernel, partition.grid(), kTileThreads, args, partition);
    });
  });
  return launcher.error();
}

}  // namespace cuda
}  // namespace adt
