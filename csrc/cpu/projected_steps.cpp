// Projected gradient steps on x_adv, in place: L-infinity sign steps, with momentum (MIM), and L2 steps.
// They are elementwise in the order of memory, so the layout does not matter; L1 and L2 norms are per example.
#include "storage.h"
#include "work.h"

#include "../math/projection.h"

namespace adt {

ADT_DECLARE_CPU_KERNELS(ADT_ISA)

namespace {

// Calls f(Type<V>, Type<S of x_adv>, Type<G of grad>).
template <class F> void with_step_types(const StepArgs& args, F f) {
  with_types(args.dtype, args.storage, [&](auto compute, auto storage) {
    with_storage_type<typename decltype(compute)::type>(args.gradient,
                                                        [&](auto gradient) { f(compute, storage, gradient); });
  });
}

// Calls f(tile) for runs of elements that cover [first, last) in order.
template <class V, class F> ADT_INLINE void for_each_run(int64_t first, int64_t last, F f) {
  for (int64_t i = first; i < last; i += kTilePixels<V>) {
    const int64_t left = last - i;
    f(Tile{i, 1, static_cast<int>(left < kTilePixels<V> ? left : kTilePixels<V>), 0});
  }
}

template <class V> struct StepBounds {
  V epsilon, lower, upper, step;
  explicit StepBounds(const StepArgs& args)
      : epsilon(splat<V>(args.ball.epsilon)),
        lower(splat<V>(args.ball.lower)),
        upper(splat<V>(args.ball.upper)),
        step(splat<V>(args.step_size)) {}
};

// Moves x_adv along sign(direction) and projects.
template <class V, class S>
ADT_INLINE void sign_step(const StepArgs& args, const StepBounds<V>& bounds, const Tile& run,
                          const TileValues<V>& direction) {
  TileValues<V> x, x_adv;
  load_tile<V>(static_cast<const Scalar<V>*>(args.x), run, x);
  load_tile<V>(static_cast<const S*>(args.x_adv), run, x_adv);
  for (int i = 0; i < 4; ++i) {
    const V moved = x_adv[i] + bounds.step * sign<V>(direction[i]);
    x_adv[i] = project_linf<V>(moved, x[i], bounds.epsilon, bounds.lower, bounds.upper);
  }
  store_tile<V>(static_cast<S*>(args.x_adv), run, x_adv);
}

}  // namespace

namespace cpu {
namespace ADT_ISA {

void linf_step(const StepArgs& args, int64_t first, int64_t last) {
  with_step_types(args, [&](auto compute, auto storage, auto gradient) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using G = typename decltype(gradient)::type;
    const StepBounds<V> bounds(args);
    const int64_t elements = args.shape.batch * args.shape.example_size(), end = last * kElementsPerItem;
    for_each_run<V>(first * kElementsPerItem, end < elements ? end : elements, [&](const Tile& run) {
      TileValues<V> grad;
      load_tile<V>(static_cast<const G*>(args.grad), run, grad);
      sign_step<V, S>(args, bounds, run, grad);
    });
  });
}

// momentum = decay * momentum + grad / ||grad||_1;  x_adv moves along its sign (Dong et al., 2018).
void momentum_linf_step(const StepArgs& args, int64_t first, int64_t last) {
  with_step_types(args, [&](auto compute, auto storage, auto gradient) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using G = typename decltype(gradient)::type;
    const StepBounds<V> bounds(args);
    const int64_t size = args.shape.example_size();
    for (int64_t example = first; example < last; ++example) {
      const int64_t start = example * size, end = start + size;
      WideSum<V> magnitudes;
      for_each_run<V>(start, end, [&](const Tile& run) {
        TileValues<V> grad;
        load_tile<V>(static_cast<const G*>(args.grad), run, grad);
        for (int i = 0; i < 4; ++i) magnitudes.add(absolute(grad[i]));
      });
      const Rescale<V> normalized(magnitudes.total(), 1.0);
      const V decay = splat<V>(args.decay);
      for_each_run<V>(start, end, [&](const Tile& run) {
        TileValues<V> grad, momentum;
        load_tile<V>(static_cast<const G*>(args.grad), run, grad);
        load_tile<V>(static_cast<const Scalar<V>*>(args.momentum), run, momentum);
        for (int i = 0; i < 4; ++i) momentum[i] = decay * momentum[i] + normalized(grad[i]);
        store_tile<V>(static_cast<Scalar<V>*>(args.momentum), run, momentum);
        sign_step<V, S>(args, bounds, run, momentum);
      });
    }
  });
}

// v = x_adv + step * grad / ||grad||_2;  x_adv = clamp(x + (v - x) * min(1, epsilon / ||v - x||_2)).
void l2_step(const StepArgs& args, int64_t first, int64_t last) {
  with_step_types(args, [&](auto compute, auto storage, auto gradient) {
    using V = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    using G = typename decltype(gradient)::type;
    const StepBounds<V> bounds(args);
    const int64_t size = args.shape.example_size();
    for (int64_t example = first; example < last; ++example) {
      const int64_t start = example * size, end = start + size;
      WideSum<V> grad_squares, delta_squares;
      for_each_run<V>(start, end, [&](const Tile& run) {
        TileValues<V> grad;
        load_tile<V>(static_cast<const G*>(args.grad), run, grad);
        for (int i = 0; i < 4; ++i) grad_squares.add_square(grad[i]);
      });
      const Rescale<V> step(::sqrt(grad_squares.total()), args.step_size);
      const auto load_moved = [&](const Tile& run, TileValues<V>& x, TileValues<V>& delta) {
        TileValues<V> grad, x_adv;
        load_tile<V>(static_cast<const G*>(args.grad), run, grad);
        load_tile<V>(static_cast<const Scalar<V>*>(args.x), run, x);
        load_tile<V>(static_cast<const S*>(args.x_adv), run, x_adv);
        for (int i = 0; i < 4; ++i) delta[i] = (x_adv[i] - x[i]) + step(grad[i]);
      };
      for_each_run<V>(start, end, [&](const Tile& run) {
        TileValues<V> x, delta;
        load_moved(run, x, delta);
        for (int i = 0; i < 4; ++i) delta_squares.add_square(delta[i]);
      });
      const double norm = ::sqrt(delta_squares.total());
      const V shrink = splat<V>(norm > args.ball.epsilon ? args.ball.epsilon / norm : 1.0);
      for_each_run<V>(start, end, [&](const Tile& run) {
        TileValues<V> x, delta;
        load_moved(run, x, delta);
        for (int i = 0; i < 4; ++i) delta[i] = clamp<V>(x[i] + delta[i] * shrink, bounds.lower, bounds.upper);
        store_tile<V>(static_cast<S*>(args.x_adv), run, delta);
      });
    }
  });
}

}  // namespace ADT_ISA
}  // namespace cpu
}  // namespace adt
