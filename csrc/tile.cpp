// The register tile in many lengths, so that a row is cut into tiles of nearly equal length.
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

template <class T, int P, int V> void tile(const Strip<T> &strip, const T *x, T *y) {
  constexpr int L = lanes<T>;
  const std::int64_t step = strip.x_step, run = strip.run;
  Vector<T> acc[P][V];
  unrolled<V>([&](auto v) {
    const Vector<T> bias = load(strip.bias + v * L);
    unrolled<P>([&](auto p) { acc[p][v] = bias; });
  });
  for (std::int64_t plane = 0; plane < strip.planes; ++plane)
    for (std::int64_t row = 0; row < strip.rows; ++row) {
      const T *at = x + plane * strip.plane_step + row * strip.row_step;
      const T *w = strip.weights + plane * strip.weight_plane + row * strip.weight_row;
      for (std::int64_t column = 0; column < strip.columns; ++column, at += strip.column_step)
        for (std::int64_t i = 0; i < run; ++i, w += strip.value) {
          Vector<T> weight[V];
          unrolled<V>([&](auto v) { weight[v] = load(w + v * L); });
          unrolled<P>([&](auto p) {
            const T value = at[p * step + i];
            unrolled<V>([&](auto v) { acc[p][v] += value * weight[v]; });
          });
        }
    }
  if (strip.relu)
    unrolled<P>([&](auto p) { unrolled<V>([&](auto v) { acc[p][v] = acc[p][v] < 0 ? Vector<T>{} : acc[p][v]; }); });
  unrolled<P>([&](auto p) {
    unrolled<V>([&](auto v) {
      T *to = y + p * strip.y_step + v * L;
      if (strip.left >= (v + 1) * L)
        store(to, acc[p][v]);
      else if (strip.left > v * L)
        store(to, acc[p][v], strip.left - v * L);
    });
  });
}

// The longest tile that is built for so many positions. Every length takes long to build: it is for the type and the
// vectors that most is computed with.
template <class T, int V> constexpr int built(int wanted) {
  if (wanted == positions<V> || (sizeof(T) == 4 && RECONV_VECTOR_BYTES == 64))
    return wanted;
  return wanted >= 8 ? 8 : wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
}

template <class F, int N> struct Table {
  F of[N];
};

template <class T, int V, int... P> constexpr auto tiles_of(std::integer_sequence<int, P...>) {
  return Table<void (*)(const Strip<T> &, const T *, T *), sizeof...(P)>{{&tile<T, built<T, V>(P + 1), V>...}}; // by P
}

template <class T, int V> void run_strip(const Strip<T> &strip, const T *x, T *y, std::int64_t count) {
  static constexpr auto tiles = tiles_of<T, V>(std::make_integer_sequence<int, positions<V>>{});
  for (std::int64_t at = 0, left; (left = count - at) > 0;) {
    const int p = static_cast<int>(divided_up(left, divided_up(left, positions<V>)));
    tiles.of[p - 1](strip, x + at * strip.x_step, y + at * strip.y_step);
    at += built<T, V>(p);
  }
}

} // namespace

template <class T> RunStrip<T> strip_of(std::int64_t vectors) {
  if constexpr (MOST_VECTORS > 2)
    if (vectors > 2)
      return vectors == 3 ? &run_strip<T, 3> : &run_strip<T, 4>;
  return vectors == 2 ? &run_strip<T, 2> : &run_strip<T, 1>;
}

template RunStrip<float> strip_of(std::int64_t);
template RunStrip<double> strip_of(std::int64_t);

} // namespace reconv::RECONV_ISA
