// 16-bit storage: bfloat16 and IEEE float16 as bare bits, converted with round to nearest, ties to even.
//
// All arithmetic is done in float; these types are only read and written. The conversions are integer operations
// without branches, so they vectorise and give the same bits with or without hardware support.
#pragma once

#include "lanes.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace adt {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline namespace ADT_ISA {

// U holds one 32-bit word or a vector of them; the 16-bit patterns lie in the low halves.
template <class U, class V> ADT_INLINE U bfloat16_bits(V value) {
  const U u = bit_cast<U>(value);
  const U rounded = (u + (0x7fffu + ((u >> 16) & 1u))) >> 16;
  const U quiet_nan = (u >> 16) | 0x40u;
  return (u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

template <class V, class U> ADT_INLINE V from_bfloat16_bits(U bits) { return bit_cast<V>(bits << 16); }

template <class U, class V> ADT_INLINE U float16_bits(V value) {
  const U zero{};
  const U u = bit_cast<U>(value), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  // Below 2^-14 the result is subnormal: adding 0.5 aligns its last bit with 2^-24 and lets the adder round.
  const U subnormal = bit_cast<U>(bit_cast<V>(magnitude) + splat<V>(0.5)) - 0x3f000000u;
  const U normal = (magnitude + (0xc8000fffu + ((magnitude >> 13) & 1u))) >> 13;
  const U infinite_or_nan = magnitude > 0x7f800000u ? zero + 0x7e00u : zero + 0x7c00u;
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  return sign | (magnitude >= 0x47800000u ? infinite_or_nan : finite);
}

template <class V, class U> ADT_INLINE V from_float16_bits(U bits) {
  const U magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
  // A subnormal is that many 2^-24, which are the last bits of numbers from 0.5 to 1. No operand is subnormal in
  // float, so neither torch.set_flush_denormal nor the compiler can flush one.
  const U subnormal = bit_cast<U>(bit_cast<V>(magnitude | 0x3f000000u) - splat<V>(0.5));
  const U normal = (magnitude << 13) + 0x38000000u;  // the exponent's bias is 127 instead of 15
  const U infinite_or_nan = (magnitude << 13) | 0x7f800000u;
  const U finite = magnitude < 0x0400u ? subnormal : normal;
  return bit_cast<V>(sign | (magnitude >= 0x7c00u ? infinite_or_nan : finite));
}

// One stored element to and from the type it is computed in.
ADT_INLINE float load_as(const float* p, float) { return *p; }
ADT_INLINE double load_as(const double* p, double) { return *p; }
ADT_INLINE void store_as(float* p, float v) { *p = v; }
ADT_INLINE void store_as(double* p, double v) { *p = v; }
#if defined(__CUDA_ARCH__)
ADT_INLINE float load_as(const bfloat16* p, float) { return __bfloat162float(__ushort_as_bfloat16(p->bits)); }
ADT_INLINE float load_as(const float16* p, float) { return __half2float(__ushort_as_half(p->bits)); }
ADT_INLINE void store_as(bfloat16* p, float v) { p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
ADT_INLINE void store_as(float16* p, float v) { p->bits = __half_as_ushort(__float2half_rn(v)); }

// Two neighbours in one word, as they lie in memory.
ADT_INLINE uint32_t pair_bits(float first, float second, bfloat16) {
  return bit_cast<uint32_t>(__floats2bfloat162_rn(first, second));
}
ADT_INLINE uint32_t pair_bits(float first, float second, float16) {
  return bit_cast<uint32_t>(__floats2half2_rn(first, second));
}
#else
ADT_INLINE float load_as(const bfloat16* p, float) { return from_bfloat16_bits<float>(uint32_t{p->bits}); }
ADT_INLINE float load_as(const float16* p, float) { return from_float16_bits<float>(uint32_t{p->bits}); }
ADT_INLINE void store_as(bfloat16* p, float v) { p->bits = static_cast<uint16_t>(bfloat16_bits<uint32_t>(v)); }
ADT_INLINE void store_as(float16* p, float v) { p->bits = static_cast<uint16_t>(float16_bits<uint32_t>(v)); }

// Two neighbours in one word, as they lie in memory.
ADT_INLINE uint32_t pair_bits(float first, float second, bfloat16) {
  return bfloat16_bits<uint32_t>(first) | bfloat16_bits<uint32_t>(second) << 16;
}
ADT_INLINE uint32_t pair_bits(float first, float second, float16) {
  return float16_bits<uint32_t>(first) | float16_bits<uint32_t>(second) << 16;
}
#endif

}  // namespace ADT_ISA
}  // namespace adt
