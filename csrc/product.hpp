// A small product of matrices in registers: P rows × V vectors are kept while the terms of their sums pass by.
#pragma once

#include "simd.hpp"

namespace reconv::RECONV_ISA {

// c[i][lane] = Σ_k a[i · a_row + k · a_step] · b[k · b_row + lane]
// One of a_row and a_step is 1. With `add`, the sum is added to what c is.
template <class T> struct Product {
  const T *a;
  std::int64_t a_row, a_step;
  const T *b;
  std::int64_t b_row, steps;
  T *c;
  std::int64_t c_row;
  bool add;
};

constexpr int MOST_ROWS = RECONV_REGISTERS == 32 ? 14 : 6; // with two vectors in each, all registers are used

template <class T, int P, int V, bool Across>
[[gnu::noinline]] void product_tile(const Product<T> &of, std::int64_t first) {
  constexpr int L = lanes<T>;
  const std::int64_t row = Across ? 1 : of.a_row, step = Across ? of.a_step : 1;
  const T *b = of.b;
  Vector<T> acc[P][V];
  RECONV_UNROLLED
  for (int i = 0; i < P; ++i)
    RECONV_UNROLLED
    for (int v = 0; v < V; ++v)
      acc[i][v] = Vector<T>{};
  const T *a = of.a + first * row;
  for (std::int64_t k = 0; k < of.steps; ++k, a += step, b += of.b_row) {
    Vector<T> values[V];
    RECONV_UNROLLED
    for (int v = 0; v < V; ++v)
      values[v] = load(b + v * L);
    RECONV_UNROLLED
    for (int i = 0; i < P; ++i) {
      const T factor = a[i * row];
      RECONV_UNROLLED
      for (int v = 0; v < V; ++v)
        acc[i][v] += factor * values[v];
    }
  }
  RECONV_UNROLLED
  for (int i = 0; i < P; ++i)
    RECONV_UNROLLED
    for (int v = 0; v < V; ++v) {
      T *to = of.c + (first + i) * of.c_row + v * L;
      store(to, of.add ? load(to) + acc[i][v] : acc[i][v]);
    }
}

// In tiles of nearly equal height: even ones, and one row where the number of rows is odd.
template <class T, int V, bool Across> void product_rows(const Product<T> &of, std::int64_t rows) {
  for (std::int64_t first = 0, high; first < rows; first += high) {
    const std::int64_t left = rows - first;
    high = left == 1 ? 1 : divided_up(left, divided_up(left, MOST_ROWS));
    high -= high > 1 && high % 2 && high == left;
    high += high > 1 && high % 2;
    if (high == 1)
      product_tile<T, 1, V, Across>(of, first);
    else
      unrolled<MOST_ROWS / 2>([&](auto half) {
        if (high == 2 * half + 2)
          product_tile<T, 2 * half + 2, V, Across>(of, first);
      });
  }
}

template <class T> void product(const Product<T> &of, std::int64_t rows, std::int64_t vectors) {
  if (of.a_step == 1)
    vectors == 2 ? product_rows<T, 2, false>(of, rows) : product_rows<T, 1, false>(of, rows);
  else
    vectors == 2 ? product_rows<T, 2, true>(of, rows) : product_rows<T, 1, true>(of, rows);
}

} // namespace reconv::RECONV_ISA
