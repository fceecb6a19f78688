// From the run-time types in an argument struct to the compile-time types of a kernel.
#pragma once

#include "tile.h"

namespace adt {
inline namespace ADT_ISA {

template <class T> struct Type {
  using type = T;
};

// Calls f(Type<V>) with the vector that computes in `dtype`.
template <class F> void with_compute_type(DType dtype, F f) {
  if (dtype == DType::float64) return f(Type<double>{});
  return f(Type<Floats>{});
}

// Calls f(Type<S>) with the stored type. Types narrower than the computing one go with float only.
template <class V, class F> void with_storage_type(DType storage, F f) {
  if constexpr (Lanes<V>::kCount == 1) {
    f(Type<double>{});
  } else {
    if (storage == DType::bfloat16) return f(Type<bfloat16>{});
    if (storage == DType::float16) return f(Type<float16>{});
    return f(Type<float>{});
  }
}

// Calls f(Type<V>, Type<S>).
template <class F> void with_types(DType dtype, DType storage, F f) {
  with_compute_type(dtype, [&](auto compute) {
    with_storage_type<typename decltype(compute)::type>(storage, [&](auto stored) { f(compute, stored); });
  });
}

}  // namespace ADT_ISA
}  // namespace adt
