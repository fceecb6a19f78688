// A per-channel affine map and a ReLU in one pass, y = max(0, scale[c] x + shift[c]), and its gradient in x.
//
// Threads share the elements in the order of memory. There they lie in rows, along which the coefficients are either
// one pair (contiguous: the P pixels of a channel) or an array (channels_last: the C channels of a pixel).
#include "storage.h"
#include "work.h"

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace {

// An array [C] along a row of channels, which repeat for as many whole pixels as fit: rows are to be long, and three
// channels would not even fill a vector.
template <class T> class RepeatedChannels {
  static constexpr int64_t kMaxRepeated = 1024;
  T repeated_[kMaxRepeated];

 public:
  const T* values;

  static int64_t length(int64_t channels) {
    return 2 * channels > kMaxRepeated ? channels : kMaxRepeated / channels * channels;
  }

  RepeatedChannels(int64_t channels, const T* source) : values(source) {
    if (length(channels) == channels) return;
    for (int64_t i = 0; i < length(channels); i += channels) {
      __builtin_memcpy(repeated_ + i, source, channels * sizeof(T));
    }
    values = repeated_;
  }
  RepeatedChannels(const RepeatedChannels&) = delete;  // values may point into the object
  RepeatedChannels& operator=(const RepeatedChannels&) = delete;
};

template <class V, class S> ADT_INLINE V load_lanes(const S* p) {
  if constexpr (Lanes<V>::kCount == 1) {
    return load_as(p, V{});
  } else {
    return load_vector(p, V{});
  }
}

template <class V, class S> ADT_INLINE void store_lanes(S* p, V v) {
  if constexpr (Lanes<V>::kCount == 1) {
    store_as(p, v);
  } else {
    store_vector(p, v);
  }
}

// Calls f(Type<V>, i) for vectors that cover [0, length). The last one ends with the row and may overlap the one before
// it (outputs are never inputs); a row shorter than a vector goes element by element.
template <class V, class F> ADT_INLINE void for_each_vector(int64_t length, const F& f) {
  constexpr int64_t kWidth = Lanes<V>::kCount;
  if (length < kWidth) {
    for (int64_t i = 0; i < length; ++i) f(Type<Scalar<V>>{}, i);
    return;
  }
  for (int64_t i = 0; i + kWidth <= length; i += kWidth) f(Type<V>{}, i);
  if (length % kWidth != 0) f(Type<V>{}, length - kWidth);
}

// Calls f(row, column, first, length) for the pieces of rows of `width` that make up the elements [first, last).
template <class F> ADT_INLINE void for_each_piece(int64_t first, int64_t last, int64_t width, const F& f) {
  int64_t row = first / width, column = first % width;
  while (first < last) {
    const int64_t in_row = width - column, length = in_row < last - first ? in_row : last - first;
    f(row, column, first, length);
    first += length;
    column = 0;
    ++row;
  }
}

// The elements of a thread's items.
struct Range {
  int64_t first, last;
  Range(const Shape& shape, int64_t first_item, int64_t last_item)
      : first(first_item * kElementsPerItem), last(last_item * kElementsPerItem) {
    const int64_t elements = shape.batch * shape.example_size();
    if (last > elements) last = elements;
  }
};

// Calls f(Type<V>, element, coefficients...) for vectors that cover the range, with the coefficients of their elements'
// channels from each of the arrays [C].
template <class V, class F, class... Arrays>
ADT_INLINE void for_each_element(const Shape& shape, const Range& range, const F& f, const Arrays*... arrays) {
  if (shape.channels_last) {
    const auto walk = [&](const auto&... along) {
      for_each_piece(range.first, range.last, RepeatedChannels<Scalar<V>>::length(shape.channels),
                     [&](int64_t, int64_t column, int64_t first, int64_t length) {
                       for_each_vector<V>(length, [&](auto lanes, int64_t i) {
                         using W = typename decltype(lanes)::type;
                         f(lanes, first + i, load_lanes<W>(along.values + column + i)...);
                       });
                     });
    };
    walk(RepeatedChannels<Arrays>(shape.channels, arrays)...);
  } else {
    for_each_piece(range.first, range.last, shape.pixels, [&](int64_t row, int64_t, int64_t first, int64_t length) {
      const auto walk = [&](auto... of_channel) {
        for_each_vector<V>(length, [&](auto lanes, int64_t i) {
          using W = typename decltype(lanes)::type;
          f(lanes, first + i, splat<W>(of_channel)...);
        });
      };
      walk(arrays[row % shape.channels]...);
    });
  }
}

}  // namespace

namespace cpu {
namespace ADT_ISA {

void affine_relu(const AffineReluArgs& args, int64_t first, int64_t last) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using T = Scalar<V>;
    const S* x = static_cast<const S*>(args.x);
    S* y = static_cast<S*>(args.y);
    const double floor = args.relu ? 0.0 : -__builtin_inf();
    const auto map = [&](auto lanes, int64_t i, auto scale, auto shift) {
      using W = typename decltype(lanes)::type;
      store_lanes<W>(y + i, at_least<W>(load_lanes<W>(x + i) * scale + shift, splat<W>(floor)));
    };
    for_each_element<V>(args.shape, Range(args.shape, first, last), map, static_cast<const T*>(args.scale),
                        static_cast<const T*>(args.shift));
  });
}

// A NaN in y lets the gradient pass, as torch.relu's does.
void affine_relu_backward(const AffineReluBackwardArgs& args, int64_t first, int64_t last) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    const S *grad_y = static_cast<const S*>(args.grad_y), *y = static_cast<const S*>(args.y);
    S* grad_x = static_cast<S*>(args.grad_x);
    const auto scaled = [&](auto lanes, int64_t i, auto scale) {
      using W = typename decltype(lanes)::type;
      store_lanes<W>(grad_x + i, load_lanes<W>(grad_y + i) * scale);
    };
    const auto masked = [&](auto lanes, int64_t i, auto scale) {
      using W = typename decltype(lanes)::type;
      const W zero = splat<W>(0.0), passed = load_lanes<W>(grad_y + i) * scale;
      store_lanes<W>(grad_x + i, load_lanes<W>(y + i) <= zero ? zero : passed);
    };
    const Range range(args.shape, first, last);
    const auto* scale = static_cast<const Scalar<V>*>(args.scale);
    if (y == nullptr) {
      for_each_element<V>(args.shape, range, scaled, scale);
    } else {
      for_each_element<V>(args.shape, range, masked, scale);
    }
  });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
