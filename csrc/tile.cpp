// The register tile, in every length, so that a row is cut into tiles of nearly equal length.
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

template <class F, int N> struct Table {
  F of[N];
};

template <class T, int V, int... P> constexpr auto tiles_of(std::integer_sequence<int, P...>) {
  return Table<void (*)(const Strip<T> &, const T *, T *), sizeof...(P)>{{&tile<T, P + 1, V>...}}; // by P − 1
}

template <class T, int V> void run_strip(const Strip<T> &strip, const T *x, T *y, std::int64_t count) {
  static constexpr auto tiles = tiles_of<T, V>(std::make_integer_sequence<int, positions<V>>{});
  std::int64_t parts = divided_up(count, positions<V>);
  for (std::int64_t at = 0; at < count; --parts) {
    const std::int64_t p = divided_up(count - at, parts);
    tiles.of[p - 1](strip, x + at * strip.x_step, y + at * strip.y_step);
    at += p;
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
