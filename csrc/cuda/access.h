// What a thread owns of an example, and how it reads and writes it.
//
// A tile is four neighbouring pixels of one channel, or of all three interleaved channels of an RGB image: whole Philox
// blocks, so that a thread draws its own normals and no others. Element i of a tile is pixel i / kChannels, channel
// i % kChannels of those it owns.
//
//   VectorTile<1>  planar memory (or a single channel): 4 contiguous elements, one 16-byte access of float
//   VectorTile<3>  three channels last: 12 contiguous elements, three 16-byte accesses
//   StridedTile    any layout, any alignment: an access per element, neighbouring threads next to each other
#pragma once

#include "../math/random.h"
#include "launch.h"

namespace adt {
namespace cuda {
namespace {

// Four elements move in one access: 16 bytes of float, 8 of a 16-bit type. The store is spelt out (write-back, the
// default): the compiler splits an assignment in four where it likes.
constexpr int kPack = 4;

__device__ __forceinline__ void load_pack(const float* address, float* values) {
  const float4 pack = *reinterpret_cast<const float4*>(address);
  values[0] = pack.x, values[1] = pack.y, values[2] = pack.z, values[3] = pack.w;
}

__device__ __forceinline__ void store_pack(float* address, const float* values) {
  __stwb(reinterpret_cast<float4*>(address), make_float4(values[0], values[1], values[2], values[3]));
}

template <class Half> struct HalfPack {
  Half element[kPack];
};

template <class Half> __device__ __forceinline__ void load_pack(const Half* address, float* values) {
  const auto pack = bit_cast<HalfPack<Half>>(*reinterpret_cast<const uint2*>(address));
#pragma unroll
  for (int i = 0; i < kPack; ++i) values[i] = load_as(&pack.element[i], 0.0f);
}

template <class Half> __device__ __forceinline__ void store_pack(Half* address, const float* values) {
  const uint2 pack = make_uint2(pair_bits(values[0], values[1], Half{}), pair_bits(values[2], values[3], Half{}));
  __stwb(reinterpret_cast<uint2*>(address), pack);
}

// Whether packs of S may lie at this address; a null pointer is never accessed.
template <class S> bool aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % (kPack * sizeof(S)) == 0;
}

// Division by a number known at launch, as a multiplication: the quotient is the high word of (n + 1) floor((2^64 - 1)
// / d), which is exact for n < 2^32 - 1.
struct Divisor {
  uint64_t reciprocal;
  uint32_t divisor;

  explicit Divisor(int64_t d)
      : reciprocal(~uint64_t{0} / static_cast<uint64_t>(d)), divisor(static_cast<uint32_t>(d)) {}
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>(__umul64hi(reciprocal, uint64_t{n} + 1));
  }
};

template <int kChannelsOwned> struct VectorTile {
  static constexpr int kChannels = kChannelsOwned;
  static constexpr int kElements = kNormalsPerBlock * kChannels;

  int64_t offset;    // of the first element within the example
  uint32_t channel;  // the first of those owned
  uint32_t block;    // Philox block of that channel; the other channels' follow

  static int64_t count(const Shape& shape) { return shape.example_size() / kElements; }

  // Tiles are numbered in the order of memory.
  __device__ __forceinline__ VectorTile(const Shape& shape, const Divisor& run, uint32_t index)
      : offset(static_cast<int64_t>(index) * kElements) {
    if (kChannels > 1) {
      channel = 0;
      block = index * kChannels;
    } else {
      channel = run.quotient(index);
      const uint32_t group = index - channel * run.divisor;
      block = group * static_cast<uint32_t>(shape.channels) + channel;
    }
  }

  __device__ __forceinline__ bool holds(int) const { return true; }

  template <class T, class S> __device__ __forceinline__ void load(const S* example, T (&values)[kElements]) const {
#pragma unroll
    for (int i = 0; i < kElements; i += kPack) load_pack(example + offset + i, values + i);
  }

  template <class T, class S> __device__ __forceinline__ void store(S* example, const T (&values)[kElements]) const {
#pragma unroll
    for (int i = 0; i < kElements; i += kPack) store_pack(example + offset + i, values + i);
  }
};

struct StridedTile {
  static constexpr int kChannels = 1;
  static constexpr int kElements = kNormalsPerBlock;

  int64_t offset;
  int64_t stride;  // between pixels
  int pixels;      // fewer than four at the end of a channel
  uint32_t channel, block;

  static int64_t count(const Shape& shape) { return shape.channels * divide_up(shape.pixels, kNormalsPerBlock); }

  // Tiles are numbered along a channel, or across channels when those are last.
  __device__ __forceinline__ StridedTile(const Shape& shape, const Divisor& run, uint32_t index) {
    const uint32_t outer = run.quotient(index), inner = index - outer * run.divisor;
    const int64_t group = shape.channels_last ? outer : inner;
    channel = shape.channels_last ? inner : outer;
    const int64_t first = group * kNormalsPerBlock, left = shape.pixels - first;
    offset = shape.channels_last ? first * shape.channels + channel : channel * shape.pixels + first;
    stride = shape.channels_last ? shape.channels : 1;
    pixels = static_cast<int>(left < kNormalsPerBlock ? left : kNormalsPerBlock);
    block = static_cast<uint32_t>(group * shape.channels + channel);
  }

  __device__ __forceinline__ bool holds(int i) const { return i < pixels; }

  // Elements beyond the last pixel read as zero.
  template <class T, class S> __device__ __forceinline__ void load(const S* example, T (&values)[kElements]) const {
#pragma unroll
    for (int i = 0; i < kElements; ++i) values[i] = holds(i) ? load_as(example + offset + i * stride, T{}) : T(0);
  }

  template <class T, class S> __device__ __forceinline__ void store(S* example, const T (&values)[kElements]) const {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (holds(i)) store_as(example + offset + i * stride, values[i]);
    }
  }
};

// Calls f(Type<Tile>) for the widest tile that shape and alignment allow. float64, which is there to check gradients,
// always takes the strided one.
template <class T, class F> void with_tile(const Shape& shape, bool all_aligned, F f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (all_aligned && shape.pixels % kNormalsPerBlock == 0) {
      if (!shape.channels_last || shape.channels == 1) return f(Type<VectorTile<1>>{});
      if (shape.channels == 3) return f(Type<VectorTile<3>>{});
    }
  }
  f(Type<StridedTile>{});
}

constexpr int kTileThreads = 128;  // per block, of the kernels that walk over tiles

// How many of their blocks must fit a multiprocessor, which bounds a thread's registers: to 64 where it owns four
// floats, else to 168.
template <class T, class Tile>
constexpr int kTileBlocks = sizeof(T) == sizeof(float) && Tile::kElements == kNormalsPerBlock ? 8 : 3;

// How tiles are dealt to threads. The tiles of an example go to neighbouring blocks; where a grid has no room for all
// examples, its blocks go on to later ones.
struct Partition {
  int64_t example_size;   // D
  int64_t slab_size;      // B * D, of one sample
  int64_t tiles;          // of an example
  int64_t examples_held;  // by a grid at a time
  Divisor blocks;         // of an example
  Divisor run;            // tiles of a channel; of a pixel group where channels are last

  template <class Tile> static Partition of(const Shape& shape) {
    const int64_t tiles = Tile::count(shape), blocks = divide_up(tiles, kTileThreads), room = kMaxGrid / blocks;
    return {shape.example_size(),
            shape.batch * shape.example_size(),
            tiles,
            shape.batch < room ? shape.batch : room,
            Divisor(blocks),
            Divisor(shape.channels_last ? shape.channels : divide_up(shape.pixels, kNormalsPerBlock))};
  }

  int64_t grid() const { return blocks.divisor * examples_held; }

  __device__ __forceinline__ uint32_t first_example() const { return blocks.quotient(blockIdx.x); }
  __device__ __forceinline__ int64_t tile() const {
    const uint32_t block = blockIdx.x - first_example() * blocks.divisor;
    return static_cast<int64_t>(block) * kTileThreads + threadIdx.x;
  }
};

}  // namespace
}  // namespace cuda
}  // namespace adt
