// Steps that stay inside the L-infinity ball around x and inside the data bounds.
#pragma once

#include "lanes.h"

namespace adt {
inline namespace ADT_ISA {

// Projection of v onto {x_adv : |x_adv - x| <= epsilon, lower <= x_adv <= upper}. A NaN in x shows.
template <class V> ADT_INLINE V project_linf(V v, V x, V epsilon, V lower, V upper) {
  const V projected = clamp<V>(clamp<V>(v, x - epsilon, x + epsilon), lower, upper);
  return x == x ? projected : x;
}

// gradient * length / norm, zero where the norm is zero. In two factors, for with a tiny or a huge norm the quotient
// itself does not fit in a float; the first is a power of two, 1 for ordinary norms.
template <class V> struct Rescale {
  V power, rest;

  ADT_INLINE Rescale(double norm, double length) {
    const double p = norm < 1e-20 ? 1.2676506002282294e30 : (norm > 1e20 ? 7.888609052210118e-31 : 1.0);  // 2^+-100
    power = splat<V>(p);
    rest = splat<V>(norm > 0 ? length / (norm * p) : 0.0);
  }
  ADT_INLINE V operator()(V gradient) const { return gradient * power * rest; }
};

}  // namespace ADT_ISA
}  // namespace adt
