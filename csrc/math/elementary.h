// Elementary functions, branch-free so that they vectorise, and the same bits on every CPU instruction set.
//
// The float forms are minimax polynomials (some with Cephes' coefficients, S. Moshier), correct to about one unit in
// the last place on the ranges named; double uses the C library's. A GPU has instructions for some of them, see the
// end of this file.
#pragma once

#include <math.h>

#include "lanes.h"

namespace adt {
inline namespace ADT_ISA {

// log(x) for a positive, normal x.
template <class V> ADT_INLINE V log_positive(V x) {
  using Int = IntOf<V>;
  using Uint = UintOf<V>;
  // x = 2^exponent * (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)).
  const Uint shifted = bit_cast<Uint>(x) + (0x3f800000u - 0x3f3504f3u);
  const Int exponent = bit_cast<Int>(shifted >> 23) - 127;
  const V m = bit_cast<V>((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const V m2 = m * m;
  V p = m * -7.6346360455e-2f + 1.2761649925e-1f;
  p = p * m - 1.3160160062e-1f;
  p = p * m + 1.4201745983e-1f;
  p = p * m - 1.6623358824e-1f;
  p = p * m + 2.0001227446e-1f;
  p = p * m - 2.5000820988e-1f;
  p = p * m + 3.3333331701e-1f;
  const V scale = to_float(exponent);
  const V tail = m * m2 * p + scale * -2.12194440e-4f - m2 * 0.5f;
  return m + tail + scale * 0.693359375f;  // log 2 in two parts, the larger exact
}
template <> ADT_INLINE double log_positive<double>(double x) { return ::log(x); }

// exp(x) and exp(x) - 1.
template <class V> struct ExpPair {
  V exp, expm1;
};

// Adding this rounds a float to an integer n (1.5 * 2^23) and leaves the bits of 2^n's exponent (127) at the low end.
constexpr double kExponentRounding = 12582912.0 + 127.0;

// 2^(n + f) for an integer n in [-126, 0], given as n + kExponentRounding, and |f| <= 1/2.
template <class V> ADT_INLINE ExpPair<V> exp2_of_parts(V rounded, V f) {
  V p = f * 1.5403513518e-4f + 1.3390735468e-3f;
  p = p * f + 9.6182374913e-3f;
  p = p * f + 5.5503574337e-2f;
  p = p * f + 2.4022649795e-1f;
  p = p * f + 6.9314718793e-1f;
  const V power = bit_cast<V>(bit_cast<UintOf<V>>(rounded) << 23);  // 2^n
  const V scaled = power * (p * f);
  return {scaled + power, scaled + (power - 1.0f)};  // the second keeps its digits as x -> 0
}

// exp(x) for x <= 0, to full relative precision; x below -87 counts as -87.
template <class V> ADT_INLINE V exp_nonpositive(V x) {
  x = at_least(x, splat<V>(-87.0));
  const V rounded = x * 1.44269504088896341f + splat<V>(kExponentRounding), n = rounded - splat<V>(kExponentRounding);
  const V r = x - n * 0.693359375f + n * 2.12194440e-4f;  // x = n log 2 + r
  return exp2_of_parts<V>(rounded, r * 1.44269504088896341f).exp;
}
template <> ADT_INLINE double exp_nonpositive<double>(double x) { return ::exp(x); }

// exp(-2 a) and exp(-2 a) - 1 for a >= 0. The first has an absolute error of a unit in the last place of 1, which is
// all that tanh needs; relative to itself the error grows with a.
template <class V> ADT_INLINE ExpPair<V> exp_minus_twice(V a) {
  const V x = at_least(a * -2.88539008177792681f, splat<V>(-126.0));  // in powers of two
  const V rounded = x + splat<V>(kExponentRounding);
  return exp2_of_parts<V>(rounded, x - (rounded - splat<V>(kExponentRounding)));
}
template <> ADT_INLINE ExpPair<double> exp_minus_twice<double>(double a) {
  return {::exp(-2.0 * a), ::expm1(-2.0 * a)};
}

// log(1 + e) for e in [0, 1], with a relative error of 3e-8; no logarithm, no division.
template <class V> ADT_INLINE V log1p_unit(V e) {
  V p = e * 5.364825483e-03f - 3.006579727e-02f;
  p = p * e + 7.920454443e-02f;
  p = p * e - 1.375380307e-01f;
  p = p * e + 1.915365458e-01f;
  p = p * e - 2.485716343e-01f;
  p = p * e + 3.332132399e-01f;
  p = p * e - 4.999964833e-01f;
  p = p * e + 1.0f;
  return p * e;
}
template <> ADT_INLINE double log1p_unit<double>(double e) { return ::log1p(e); }

template <class V> ADT_INLINE V quotient(V numerator, V denominator) { return numerator / denominator; }

// (sin, cos) of 2 pi word / 2^32: the turn is reduced to within an eighth in integers, without rounding.
template <class V> struct SinCos {
  V sin, cos;
};

template <class V> ADT_INLINE SinCos<V> sincos_turn(UintOf<V> word) {
  using Uint = UintOf<V>;
  using Int = IntOf<V>;
  // Four times the offset from the nearest quarter: the shift drops the quarters.
  const V a = to_float(bit_cast<Int>(word << 2)) * static_cast<float>(6.283185307179586 / 17179869184.0);
  const V z = a * a;
  const V s = ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * a + a;
  const V c = (((z * 2.443315711809948e-5f - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z - 0.5f) * z + 1.0f;
  const Uint eighths = word + 0x20000000u;          // its top two bits number the nearest quarter
  const auto swap = any_bit(eighths, 0x40000000u);  // odd quarters trade sine and cosine
  const V sine = swap ? c : s, cosine = swap ? s : c;
  return {bit_cast<V>(bit_cast<Uint>(sine) ^ (eighths & 0x80000000u)),
          bit_cast<V>(bit_cast<Uint>(cosine) ^ ((eighths + 0x40000000u) & 0x80000000u))};
}
#if !defined(__CUDA_ARCH__)
template <> ADT_INLINE SinCos<double> sincos_turn<double>(uint32_t word) {
  const double angle = static_cast<int32_t>(word) * (6.283185307179586476925 / 4294967296.0);
  return {::sin(angle), ::cos(angle)};
}
#endif

// ---- On a GPU ---------------------------------------------------------------------------------------------------
#if defined(__CUDA_ARCH__)

// The special function unit: one instruction each, relative error about 2^-22 (that of log2 is absolute between 1/2
// and 2). Subnormal operands and results count as zero.
ADT_INLINE float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ADT_INLINE float approximate_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ADT_INLINE float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ADT_INLINE float approximate_square_root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Near x = 1 the error, 2e-7, is absolute: good for the terms of a sum, not where log(x) itself is a scale.
template <> ADT_INLINE float log_positive<float>(float x) { return approximate_log2(x) * 0.6931471806f; }

template <> ADT_INLINE float exp_nonpositive<float>(float x) { return ::expf(at_least(x, -87.0f)); }

// In half turns, so that no argument needs the slow reduction.
template <> ADT_INLINE SinCos<double> sincos_turn<double>(uint32_t word) {
  SinCos<double> turn;
  ::sincospi(static_cast<int32_t>(word) * (1.0 / 2147483648.0), &turn.sin, &turn.cos);
  return turn;
}

// For denominators of ordinary size, 2^-126 to 2^126.
template <> ADT_INLINE float quotient<float>(float numerator, float denominator) {
  return numerator * approximate_reciprocal(denominator);
}

#endif

}  // namespace ADT_ISA
}  // namespace adt
