// Where positions stream by and the weights' gradients stay in registers: lanes are channels.
#pragma once

#include "depthwise.hpp"

namespace reconv::RECONV_ISA::channelwise {

constexpr int MOST_TAPS = RECONV_REGISTERS == 32 ? 8 : 5; // of a kernel row, in registers together
constexpr int BAND = 3;    // kernel rows that are in registers together, where they are of 1 or 3 taps
constexpr int AT_ONCE = 4; // positions whose y is in registers

// Of so many taps, how often each has an accumulator: additions must not wait for each other.
constexpr int copies(int taps) {
  if (RECONV_REGISTERS == 16)
    return taps <= 5 ? 2 : 1;
  return taps <= 2 ? 4 : taps <= 4 ? 3 : taps <= 7 ? 2 : 1;
}

// Where positions are two taps apart, larger tiles are not worth their compilation.
constexpr int most_taps(int apart) { return apart == 2 ? 5 : MOST_TAPS; }

// Rows of positions, and what they meet at the first of some taps. Steps are in elements.
struct Stream {
  std::int64_t rows, positions;
  std::int64_t x_row, x_position, x_tap, x_kernel_row, y_row, y_position, sums_row;
};

// Calls some(count, x, y) for all positions, a few at a time.
template <class T, class F>
[[gnu::always_inline]] inline void each_position(const Stream &s, const T *x, const T *y, F &&some) {
  for (std::int64_t row = 0; row < s.rows; ++row, x += s.x_row, y += s.y_row) {
    std::int64_t at = 0;
    for (; at + AT_ONCE <= s.positions; at += AT_ONCE)
      some(std::integral_constant<int, AT_ONCE>{}, x + at * s.x_position, y + at * s.y_position);
    if (at + 2 <= s.positions) {
      some(std::integral_constant<int, 2>{}, x + at * s.x_position, y + at * s.y_position);
      at += 2;
    }
    if (at < s.positions)
      some(std::integral_constant<int, 1>{}, x + at * s.x_position, y + at * s.y_position);
  }
}

// sums[tap] += Σ y[position] · x[S·position + tap]; S = 0: steps of any size.
template <class T, int K, int S> void stream(const Stream &s, const T *x, const T *y, T *sums) {
  constexpr int L = lanes<T>, C = copies(K);
  Vector<T> acc[C][K] = {};
  RECONV_UNROLLED
  for (int t = 0; t < K; ++t)
    acc[0][t] = load(sums + t * L);

  const auto some = [&](auto count, const T *x, const T *y) __attribute__((always_inline)) {
    constexpr int P = count;
    Vector<T> value[P];
    RECONV_UNROLLED
    for (int p = 0; p < P; ++p)
      value[p] = load(y + p * s.y_position);
    if constexpr (S > 0) {
      RECONV_UNROLLED
      for (int j = 0; j < S * (P - 1) + K; ++j) {
        Vector<T> met = load(x + j % 4 * s.x_tap);
        in_register(met);
        RECONV_UNROLLED
        for (int t = 0; t < K; ++t)
          if (meets<P, S>(j - t))
            acc[(j - t) / S % C][t] += met * value[(j - t) / S];
        if (j % 4 == 3) {
          x += 4 * s.x_tap;
          in_register(x);
        }
      }
    } else {
      RECONV_UNROLLED
      for (int p = 0; p < P; ++p)
        RECONV_UNROLLED
        for (int t = 0; t < K; ++t)
          acc[p % C][t] += value[p] * load(x + p * s.x_position + t * s.x_tap);
    }
  };

  each_position(s, x, y, some);
  RECONV_UNROLLED
  for (int t = 0; t < K; ++t) {
    RECONV_UNROLLED
    for (int c = 1; c < C; ++c)
      acc[0][t] += acc[c][t];
    store(sums + t * L, acc[0][t]);
  }
}

// The same for BAND kernel rows.
template <class T, int K, int S> void band(const Stream &s, const T *x, const T *y, T *sums) {
  constexpr int L = lanes<T>, R = BAND, C = copies(R * K);
  Vector<T> acc[C][R][K] = {};
  RECONV_UNROLLED
  for (int r = 0; r < R; ++r)
    RECONV_UNROLLED
    for (int t = 0; t < K; ++t)
      acc[0][r][t] = load(sums + r * s.sums_row + t * L);

  std::int64_t x_one = s.x_tap, x_three = 3 * x_one, y_one = s.y_position, y_three = 3 * y_one;
  in_register(x_one), in_register(x_three);
  const auto some = [&](auto count, const T *x, const T *y) __attribute__((always_inline)) {
    constexpr int P = count;
    Vector<T> value[P];
    const T *from[R];
    RECONV_UNROLLED
    for (int p = 0; p < P; ++p)
      value[p] = load(y + (p == 3 ? y_three : p * y_one));
    RECONV_UNROLLED
    for (int r = 0; r < R; ++r)
      from[r] = x + r * s.x_kernel_row;
    RECONV_UNROLLED
    for (int j = 0; j < S * (P - 1) + K; ++j)
      RECONV_UNROLLED
      for (int r = 0; r < R; ++r) {
        Vector<T> met = load(from[r] + (j % 4 == 3 ? x_three : j % 4 * x_one));
        in_register(met);
        RECONV_UNROLLED
        for (int t = 0; t < K; ++t)
          if (meets<P, S>(j - t))
            acc[(j - t) / S % C][r][t] += met * value[(j - t) / S];
        if (j % 4 == 3) {
          from[r] += 4 * x_one;
          in_register(from[r]);
        }
      }
  };

  each_position(s, x, y, some);
  RECONV_UNROLLED
  for (int r = 0; r < R; ++r)
    RECONV_UNROLLED
    for (int t = 0; t < K; ++t) {
      RECONV_UNROLLED
      for (int c = 1; c < C; ++c)
        acc[0][r][t] += acc[c][r][t];
      store(sums + r * s.sums_row + t * L, acc[0][r][t]);
    }
}

template <class T> using Streamed = void (*)(const Stream &, const T *, const T *, T *);

template <class T> struct Streams {
  Streamed<T> of[3][MOST_TAPS] = {}; // S, taps − 1
  Streamed<T> band[3][3] = {};       // BAND kernel rows, of 1 or 3 taps
};

template <class T, int S, int... I> constexpr void add_streams(Streams<T> &all, std::integer_sequence<int, I...>) {
  ((all.of[S][I] = &stream<T, I + 1, S>), ...);
}

template <class T> constexpr Streams<T> all_streams() {
  Streams<T> all;
  add_streams<T, 0>(all, std::make_integer_sequence<int, most_taps(0)>{});
  add_streams<T, 1>(all, std::make_integer_sequence<int, most_taps(1)>{});
  add_streams<T, 2>(all, std::make_integer_sequence<int, most_taps(2)>{});
  all.band[1][0] = &band<T, 1, 1>, all.band[1][2] = &band<T, 3, 1>;
  all.band[2][2] = &band<T, 3, 2>; // of one tap, neighbours are always one apart
  return all;
}

} // namespace reconv::RECONV_ISA::channelwise
