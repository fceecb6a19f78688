// Floats: as many floats as one register of the instruction set holds, as one value (GCC and Clang vectors).
// The arithmetic is IEEE, element by element, so every instruction set gives the same bits.
#pragma once

#include <stddef.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <utility>

#include "../math/lanes.h"

namespace adt {
inline namespace ADT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Floats __attribute__((vector_size(4 * kLanes))) = float;
using Ints __attribute__((vector_size(4 * kLanes))) = int32_t;
using Uints __attribute__((vector_size(4 * kLanes))) = uint32_t;
using LongUints __attribute__((vector_size(4 * kLanes))) = uint64_t;  // half as many lanes
using ShortUints __attribute__((vector_size(2 * kLanes))) = uint16_t;

template <> struct Lanes<Floats> {
  using Int = Ints;
  using Uint = Uints;
  static constexpr int kCount = kLanes;
};

ADT_INLINE Floats to_float(Ints words) { return __builtin_convertvector(words, Floats); }

ADT_INLINE Floats to_float(Uints words) {
#if defined(__AVX512F__)
  return __builtin_convertvector(words, Floats);
#else
  // Without a native conversion: both halves are exact, so their sum is rounded once, as the native one is.
  return to_float(bit_cast<Ints>(words >> 16)) * 65536.0f + to_float(bit_cast<Ints>(words & 0xffffu));
#endif
}

ADT_INLINE Floats square_root(Floats x) {
  Floats root;
  for (int lane = 0; lane < kLanes; ++lane) root[lane] = __builtin_sqrtf(x[lane]);  // becomes one vsqrtps
  return root;
}

// Shuffles by a rule: lane i of the result is lane Rule::source(i) of a, or of b from kLanes on.
template <class Rule, class V, size_t... i> ADT_INLINE V shuffle(V a, V b, std::index_sequence<i...>) {
  return __builtin_shufflevector(a, b, Rule::source(i)...);
}
template <class Rule, class V> ADT_INLINE V shuffle(V a, V b) {
  return shuffle<Rule>(a, b, std::make_index_sequence<kLanes>());
}

struct OddLanes {  // odd lanes of a and b, in turn
  static constexpr int source(int i) { return (i | 1) + (i % 2) * kLanes; }
};
struct EvenLanes {
  static constexpr int source(int i) { return (i & ~1) + (i % 2) * kLanes; }
};
template <int kHalf, int kRun> struct Interleave {  // runs of kRun lanes from one half of a and of b, in turn
  static constexpr int source(int i) {
    return kHalf * kLanes / 2 + i / (2 * kRun) * kRun + i % kRun + (i / kRun % 2) * kLanes;
  }
};

// 64-bit products of the even lanes. Named, for GCC would take the 64 x 64 bit product, three times as slow. (With a
// mask that leaves nothing out, for without one GCC 12 warns of an uninitialised value in its own header.)
ADT_INLINE Uints multiply_even(Uints a, Uints b) {
#if defined(__AVX512F__)
  return bit_cast<Uints>(_mm512_maskz_mul_epu32(0xff, bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<Uints>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return bit_cast<Uints>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  return bit_cast<Uints>((bit_cast<LongUints>(a) & 0xffffffffull) * (bit_cast<LongUints>(b) & 0xffffffffull));
#endif
}

// 32 x 32 -> 64 bit products: even and odd lanes apart, then sorted into high and low words.
ADT_INLINE void multiply_wide(Uints a, uint32_t b, Uints& high, Uints& low) {
  const Uints factor = Uints{} + b;
  const Uints even = multiply_even(a, factor);
  const Uints odd = multiply_even(bit_cast<Uints>(bit_cast<LongUints>(a) >> 32), factor);
  high = shuffle<OddLanes>(even, odd);
  low = shuffle<EvenLanes>(even, odd);
}

// 0, 1, 2, ... in the lanes.
template <class V> ADT_INLINE UintOf<V> lane_numbers() {
  UintOf<V> numbers{};
  if constexpr (Lanes<V>::kCount > 1) {
    for (int lane = 0; lane < Lanes<V>::kCount; ++lane) numbers[lane] = lane;
  }
  return numbers;
}

// Four planes, lane i of plane l belonging to pixel 4 i + l, become pixels in order.
ADT_INLINE void interleave_planes(Floats (&v)[4]) {
  const Floats low01 = shuffle<Interleave<0, 1>>(v[0], v[1]), high01 = shuffle<Interleave<1, 1>>(v[0], v[1]);
  const Floats low23 = shuffle<Interleave<0, 1>>(v[2], v[3]), high23 = shuffle<Interleave<1, 1>>(v[2], v[3]);
  v[0] = shuffle<Interleave<0, 2>>(low01, low23);
  v[1] = shuffle<Interleave<1, 2>>(low01, low23);
  v[2] = shuffle<Interleave<0, 2>>(high01, high23);
  v[3] = shuffle<Interleave<1, 2>>(high01, high23);
}
ADT_INLINE void interleave_planes(double (&)[4]) {}  // one lane a plane: already in order

ADT_INLINE double sum_lanes(Floats v) {
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(v[lane]);
  return sum;
}
ADT_INLINE double sum_lanes(double v) { return v; }

// A sum of many vectors' lanes, or of their squares, kept in double: neither tiny nor many terms are lost.
template <class V> class WideSum;

template <> class WideSum<Floats> {
  using HalfFloats __attribute__((vector_size(2 * kLanes))) = float;
  using HalfDoubles __attribute__((vector_size(4 * kLanes))) = double;
  HalfDoubles low_{}, high_{};

  template <size_t... i> ADT_INLINE static HalfDoubles half(Floats v, size_t first, std::index_sequence<i...>) {
    const HalfFloats lanes =
        first == 0 ? __builtin_shufflevector(v, v, i...) : __builtin_shufflevector(v, v, (i + kLanes / 2)...);
    return __builtin_convertvector(lanes, HalfDoubles);
  }
  ADT_INLINE static HalfDoubles low(Floats v) { return half(v, 0, std::make_index_sequence<kLanes / 2>()); }
  ADT_INLINE static HalfDoubles high(Floats v) { return half(v, 1, std::make_index_sequence<kLanes / 2>()); }

 public:
  ADT_INLINE void add(Floats v) {
    low_ += low(v);
    high_ += high(v);
  }
  ADT_INLINE void add_square(Floats v) {
    low_ += low(v) * low(v);
    high_ += high(v) * high(v);
  }
  ADT_INLINE double total() const {
    const HalfDoubles both = low_ + high_;
    double sum = 0;
    for (int lane = 0; lane < kLanes / 2; ++lane) sum += both[lane];
    return sum;
  }
};

template <> class WideSum<double> {
  double sum_ = 0;

 public:
  ADT_INLINE void add(double v) { sum_ += v; }
  ADT_INLINE void add_square(double v) { sum_ += v * v; }
  ADT_INLINE double total() const { return sum_; }
};

}  // namespace ADT_ISA
}  // namespace adt
