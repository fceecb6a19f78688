// From random words to normals (Box-Muller) and uniforms.
#pragma once

#include "elementary.h"
#include "philox.h"

namespace adt {
inline namespace ADT_ISA {

// Uniform on (0, 1]: (word + 1/2) / 2^32 rounded to float, for every computing type. It is never 0, so the radius
// below is finite for all 2^32 words.
template <class U> ADT_INLINE auto unit_uniform(U word) {
  return to_float(word) * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
}

// Uniform on [-1, 1], in float as well.
template <class U> ADT_INLINE auto symmetric_uniform(U word) { return unit_uniform(word) * 2.0f - 1.0f; }

// The four normals of a block of words: two Box-Muller pairs, sqrt(-2 log u) (cos, sin)(2 pi v).
template <class V> struct Normals {
  V lane[kNormalsPerBlock];
};

template <class V> ADT_INLINE V box_muller_radius(UintOf<V> word) {
  return square_root(log_positive<V>(static_cast<V>(unit_uniform(word))) * splat<V>(-2.0));
}

#if defined(__CUDA_ARCH__)
// -2 log u = -2 log(1 - d), where d = 1 - u is exact: near u = 1 by a polynomial in d of relative error 4e-8, since
// the hardware's logarithm has a small absolute error there, not a small relative one.
template <> ADT_INLINE float box_muller_radius<float>(uint32_t word) {
  const float u = unit_uniform(word), d = 1.0f - u;
  float p = d * 6.714192629e-01f + 2.934066355e-01f;
  p = p * d + 5.142204165e-01f;
  p = p * d + 6.658614278e-01f;
  p = p * d + 1.000014544f;
  p = p * d + 2.0f;
  return approximate_square_root(d < 0.25f ? p * d : approximate_log2(u) * -1.3862943611f);
}
#endif

template <class V> ADT_INLINE Normals<V> box_muller(const PhiloxWords<UintOf<V>>& words) {
  const V radius0 = box_muller_radius<V>(words.word[0]), radius1 = box_muller_radius<V>(words.word[2]);
  const SinCos<V> turn0 = sincos_turn<V>(words.word[1]), turn1 = sincos_turn<V>(words.word[3]);
  return {{radius0 * turn0.cos, radius0 * turn0.sin, radius1 * turn1.cos, radius1 * turn1.sin}};
}

}  // namespace ADT_ISA
}  // namespace adt
