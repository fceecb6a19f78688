// The tanh-Gaussian distribution of ADT, per element (paper, Eq. 9-11):
//
//   sigma = softplus(rho),  u = mu + sigma r,  t = tanh(u),  x_adv = clamp(x + epsilon t, lower, upper)
//   -log p = r^2/2 + log(2 pi)/2 + log(sigma + o) + log(1 - t^2 + o) + log epsilon
//
// The offset o is 0 in the paper; the published code adds 1e-8.
#pragma once

#include <limits>

#include "elementary.h"

namespace adt {
inline namespace ADT_ISA {

// tanh(u), 1 - tanh(u)^2 and the pieces of its logarithm. With e = exp(-2|u|) and q = 1 + e:
//   tanh|u| = (1 - e) / q,  1 - t^2 = 4 e / q^2,  log(1 - t^2) = 2 (log 2 - |u| - log q),
// none of which cancels, however large |u| grows.
template <class V> struct TanhTerms {
  V tanh;            // t
  V derivative;      // 1 - t^2
  V magnitude;       // |u|
  V one_plus_decay;  // q in (1, 2]; many of them may be multiplied before one logarithm is taken
};

template <class V> ADT_INLINE TanhTerms<V> tanh_terms(V u) {
  const V magnitude = absolute(u);
  const ExpPair<V> decay = exp_minus_twice<V>(magnitude);
  const V q = decay.exp + splat<V>(1.0);
  const V inverse = splat<V>(1.0) / q;
  return {with_sign_of<V>(-decay.expm1 * inverse, u), splat<V>(4.0) * decay.exp * inverse * inverse, magnitude, q};
}

#if defined(__CUDA_ARCH__)
template <> ADT_INLINE TanhTerms<float> tanh_terms<float>(float u) {
  const float minus_two_log2_e = -2.8853900818f;
  const float magnitude = absolute(u), e = approximate_exp2(magnitude * minus_two_log2_e), q = 1.0f + e;
  const float inverse = approximate_reciprocal(q);
  return {with_sign_of(inverse - e * inverse, u), 4.0f * e * inverse * inverse, magnitude, q};
}
#endif

// sigma = softplus(rho) with what its gradient and its logarithm need.
template <class V> struct Scale {
  V sigma;
  V derivative;  // d sigma / d rho = sigmoid(rho)
};

template <class V> ADT_INLINE Scale<V> softplus(V rho) {
  const V zero = splat<V>(0.0), one = splat<V>(1.0);
  const V e = exp_nonpositive<V>(-absolute(rho));
  return {(rho > zero ? rho : zero) + log1p_unit<V>(e), quotient<V>(rho > zero ? one : e, one + e)};
}

// log softplus(rho); below -16 it is rho to the last place, and stays finite where sigma itself underflows.
template <class V> ADT_INLINE V log_sigma(V sigma, V rho) {
  return rho < splat<V>(-16.0) ? rho : log_positive<V>(sigma);
}
template <> ADT_INLINE double log_sigma<double>(double sigma, double rho) { return rho < -37.0 ? rho : ::log(sigma); }

// Whether T computes with an offset. One below T's smallest normal number counts as none: nothing would keep
// 1 - t^2 + o, or sigma + o, within what logarithms and quotients are made for.
template <class T> bool has_offset(double log_offset) { return log_offset >= std::numeric_limits<T>::min(); }

// log(sigma + o).
template <bool kLogOffset, class V> ADT_INLINE V log_scale(V sigma, V rho, V log_offset) {
  return kLogOffset ? log_positive<V>(sigma + log_offset) : log_sigma<V>(sigma, rho);
}

// The constants of an element's -log p: log(2 pi)/2 + log epsilon, and without offset the 2 log 2 of log(1 - t^2).
inline double density_constant(double epsilon, bool offset) {
  return (offset ? 0.91893853320467274178 : 0.91893853320467274178 + 1.38629436111989061883) + ::log(epsilon);
}

// One sample's share of d(L + c H)/d(mu, sigma) for an element, where H is the sampled -log p (Eq. 10-11):
//   d/du = epsilon (1 - t^2) g - 2 c t (1 - t^2) / (1 - t^2 + o),  d/dmu = d/du,  d/dsigma = r d/du + c / (sigma + o)
// g is d L / d x_adv, zero where x_adv was clamped. The last term does not depend on the sample: rho_gradient adds it.
template <bool kLogOffset, class V>
ADT_INLINE V location_gradient(const TanhTerms<V>& terms, V gradient, V epsilon, V entropy_weight, V log_offset) {
  V entropy = splat<V>(-2.0) * entropy_weight * terms.tanh;
  if (kLogOffset) entropy = entropy * quotient<V>(terms.derivative, terms.derivative + log_offset);
  return epsilon * terms.derivative * gradient + entropy;
}

// d/drho, from the samples' sums of r d/du and of c.
template <class V> ADT_INLINE V rho_gradient(const Scale<V>& scale, V grad_sigma, V entropy_weight, V log_offset) {
  return scale.derivative * grad_sigma + entropy_weight * quotient<V>(scale.derivative, scale.sigma + log_offset);
}

// Whether clamp(v, lower, upper) passes the gradient on: the bounds themselves count as inside, as in torch.clamp.
template <class V> ADT_INLINE V masked_by_clamp(V gradient, V v, V lower, V upper) {
  const V zero = splat<V>(0.0);
  gradient = v >= lower ? gradient : zero;
  return v <= upper ? gradient : zero;
}

// Adam with betas (0, 0) moves by step g / (|g| + 1e-8), which is not quite the sign: at |g| = 1e-8 it is half.
template <class V> ADT_INLINE V adam_direction(V gradient) {
  return quotient<V>(gradient, absolute(gradient) + splat<V>(1e-8));
}

}  // namespace ADT_ISA
}  // namespace adt
