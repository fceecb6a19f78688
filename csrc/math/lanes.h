// Lanes: lets one formula serve a single float, a double, or a vector of floats.
//
// Every formula in this folder is a template over V, the type it computes in:
//   float        one CUDA thread's element, and the scalar tails of CPU code
//   double       the float64 operators (gradcheck and reference use)
//   Floats       as many floats as a register holds (csrc/cpu/vector.h)
// Comparison yields a bool for the scalars and a lane mask for the vector, and `mask ? a : b` reads the same for
// both, so the formulas need nothing beyond the few names below. A vector type belongs to no namespace, so its
// overloads of to_float, multiply_wide and square_root must be seen before the formulas: include vector.h first.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define ADT_INLINE __host__ __device__ __forceinline__
#else
#define ADT_INLINE inline __attribute__((always_inline))
#endif

// Each instruction set compiles these templates into a namespace of its own; otherwise the linker would fold
// the AVX-512 copy of a function into the SSE4.2 one, and the older machine would meet an illegal instruction.
#ifndef ADT_ISA
#define ADT_ISA generic
#endif

namespace adt {
inline namespace ADT_ISA {

template <class V> struct Lanes;

template <> struct Lanes<float> {
  using Int = int32_t;
  using Uint = uint32_t;
  static constexpr int kCount = 1;
};

template <> struct Lanes<double> {
  using Int = int64_t;
  using Uint = uint32_t;  // one Philox word; a double is never taken apart bit by bit
  static constexpr int kCount = 1;
};

template <class V> using IntOf = typename Lanes<V>::Int;
template <class V> using UintOf = typename Lanes<V>::Uint;

// The same bits, read as another type of the same size.
template <class To, class From> ADT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast changes the type, not the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class V> ADT_INLINE V splat(double value) { return V{} + static_cast<float>(value); }
template <> ADT_INLINE float splat<float>(double value) { return static_cast<float>(value); }
template <> ADT_INLINE double splat<double>(double value) { return value; }

// Round-to-nearest conversions of the 32-bit words in a lane.
ADT_INLINE float to_float(uint32_t word) { return static_cast<float>(word); }
ADT_INLINE float to_float(int32_t word) { return static_cast<float>(word); }

// The high and low words of a 32 x 32 bit product.
ADT_INLINE void multiply_wide(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
#if defined(__CUDA_ARCH__)
  high = __umulhi(a, b);  // with the low product, one IMAD.WIDE
  low = a * b;
#else
  const uint64_t product = static_cast<uint64_t>(a) * b;
  high = static_cast<uint32_t>(product >> 32);
  low = static_cast<uint32_t>(product);
#endif
}

ADT_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
ADT_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class V> ADT_INLINE V absolute(V x) { return bit_cast<V>(bit_cast<UintOf<V>>(x) & 0x7fffffffu); }
template <> ADT_INLINE double absolute<double>(double x) { return __builtin_fabs(x); }
#if defined(__CUDA_ARCH__)
template <> ADT_INLINE float absolute<float>(float x) { return ::fabsf(x); }  // folds into the operand of what follows
#endif

// |magnitude| with the sign of `sign`; magnitude must not be negative.
template <class V> ADT_INLINE V with_sign_of(V magnitude, V sign) {
  return bit_cast<V>(bit_cast<UintOf<V>>(magnitude) | (bit_cast<UintOf<V>>(sign) & 0x80000000u));
}
template <> ADT_INLINE double with_sign_of<double>(double magnitude, double sign) {
  return __builtin_copysign(magnitude, sign);
}

// These keep NaN: no comparison holds.
template <class V> ADT_INLINE V at_least(V x, V lower) { return x < lower ? lower : x; }
template <class V> ADT_INLINE V clamp(V x, V lower, V upper) {
  x = at_least(x, lower);
  return x > upper ? upper : x;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <> ADT_INLINE float clamp<float>(float x, float lower, float upper) {
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(lower));
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(upper));
  return x;
}
#endif

// Whether a bit of the mask is set in the word.
template <class U> ADT_INLINE auto any_bit(U word, uint32_t mask) { return (word & mask) != 0u; }
#if defined(__CUDA_ARCH__)
ADT_INLINE bool any_bit(uint32_t word, uint32_t mask) {
  uint32_t bits;  // hidden from the optimiser, which would make a shift and a comparison of what is one instruction
  asm("and.b32 %0, %1, %2;" : "=r"(bits) : "r"(word), "r"(mask));
  return bits != 0;
}
#endif

// sign(x) in {-1, 0, 1}; 0 for NaN, as torch.sign.
template <class V> ADT_INLINE V sign(V x) {
  const V zero = splat<V>(0.0), one = splat<V>(1.0);
  return x > zero ? one : (x < zero ? -one : zero);
}

}  // namespace ADT_ISA
}  // namespace adt
