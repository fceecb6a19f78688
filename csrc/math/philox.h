// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
//
// A normal depends on its coordinates and the seed only, never on the grid, the threads, the device or the memory
// layout. The coordinates fill the 128-bit counter, the seed is the 64-bit key:
//
//   word 0  block: which group of four normals of the example (32 bits)
//   word 1  example b (32 bits)
//   word 2  stream offset, low 32 bits
//   word 3  Monte Carlo sample s (24 bits) | stream offset, bits 32..39 (8 bits)
//
// What these widths cannot hold is refused before it comes here (adt_fast/noise.py has the limits).
//
// An example [C, P] of C channels and P pixels (P is the product of the sizes after the channel) numbers its blocks
// by pixel group and channel: element (channel c, pixel p) is lane p % 4 of block (p / 4) * C + c. So a CUDA thread
// or a CPU vector that owns four neighbouring pixels needs one block per channel, whichever way memory is laid out.
#pragma once

#include "lanes.h"

namespace adt {
inline namespace ADT_ISA {

constexpr int kNormalsPerBlock = 4;

template <class U> struct PhiloxWords {
  U word[4];
};

template <class U> ADT_INLINE PhiloxWords<U> philox(PhiloxWords<U> counter, uint64_t seed) {
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  U c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__clang__)
#pragma clang loop unroll(full)
#elif !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Where in the stream a whole (sample, example) row lies: everything but the block.
struct NoiseRow {
  uint64_t seed;
  uint32_t example;
  uint32_t offset_low;
  uint32_t sample_and_offset_high;
};

ADT_INLINE NoiseRow noise_row(uint64_t seed, uint64_t offset, int64_t sample, int64_t example) {
  return {seed, static_cast<uint32_t>(example), static_cast<uint32_t>(offset),
          (static_cast<uint32_t>(sample) & 0xffffffu) | (static_cast<uint32_t>(offset >> 32) << 24)};
}

// The four random words of each block; U is uint32_t or a vector of block numbers.
template <class U> ADT_INLINE PhiloxWords<U> philox_block(U block, const NoiseRow& row) {
  const U zero{};
  return philox<U>({{block, zero + row.example, zero + row.offset_low, zero + row.sample_and_offset_high}}, row.seed);
}

}  // namespace ADT_ISA
}  // namespace adt
