// The weight gradient of short one-dimensional kernels whose positions are neighbours in memory: lanes are positions,
// so that nothing is turned around. Of a channel, each tap's sum stays in a register while the lines pass by.
#pragma once

#include "depthwise_pack.hpp"

namespace reconv::RECONV_ISA::channelwise {

constexpr int MOST_LINE_TAPS = 8; // of more, loads that cross cache lines take longer than turning the maps

inline thread_local Scratch line_memory;

// The sum of all lanes, by halves.
template <class T> [[gnu::always_inline]] inline T total(Vector<T> v) {
  unrolled<__builtin_ctz(lanes<T>)>([&](auto stage) { v += swapped<(lanes<T> >> (stage + 1)), T>(v); });
  return v[0];
}

// The gradient of the K taps of one channel; `line` has place for x with the zeros around it.
template <class S, int K>
void line_gradient(const ConvShape &s, const S *x, const S *y, S *w, Computed<S> *line) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  const Axis &axis = s.axes[2];
  const std::int64_t wide = axis.dilation * (K - 1) + axis.output, before = larger(axis.before, 0);
  const std::int64_t held = smaller(axis.input, wide - before); // others meet no output
  T *const first = zeros(line, before);
  zeros(first + larger(held, 0), larger(0, wide - before - larger(held, 0)));
  Vector<T> acc[K] = {};
  for (std::int64_t n = 0; n < s.batch; ++n, x += s.x.batch, y += s.y.batch) {
    std::int64_t i = 0;
    for (; i + L <= held; i += L)
      store(first + i, load(x + i));
    if (i < held)
      store(first + i, load(x + i, held - i), held - i);
    const T *from = line;
    for (i = 0; i + L <= axis.output; i += L, from += L) {
      const Vector<T> value = load(y + i);
      RECONV_UNROLLED
      for (int t = 0; t < K; ++t)
        acc[t] += value * load(from + t * axis.dilation);
    }
    if (const std::int64_t left = axis.output - i) {
      const Vector<T> value = load(y + i, left);
      RECONV_UNROLLED
      for (int t = 0; t < K; ++t)
        acc[t] += value * load(from + t * axis.dilation, left);
    }
  }
  RECONV_UNROLLED
  for (int t = 0; t < K; ++t) {
    const T sum = total<T>(acc[t]);
    store(w + t * s.w.axis[2], Vector<T>{} + sum, 1);
  }
}

inline bool is_line(const ConvShape &s) {
  for (int i = 0; i < 2; ++i)
    if (s.axes[i].input != 1 || s.axes[i].output != 1 || s.axes[i].kernel != 1 || s.axes[i].before != 0)
      return false;
  return s.axes[2].stride == 1 && s.axes[2].kernel <= MOST_LINE_TAPS && s.x.axis[2] == 1 && s.y.axis[2] == 1 &&
         s.axes[2].before >= 0;
}

template <class S, int... K> auto line_gradient_of(std::int64_t taps, std::integer_sequence<int, K...>) {
  static constexpr decltype(&line_gradient<S, 1>) of[] = {&line_gradient<S, K + 1>...};
  return of[taps - 1];
}

// All channels; 1 where memory ran out.
template <class S> int line_gradients(const ConvShape &s, const S *x, const S *y, S *w, Parallel parallel) {
  using T = Computed<S>;
  const Axis &axis = s.axes[2];
  const auto gradient = line_gradient_of<S>(axis.kernel, std::make_integer_sequence<int, MOST_LINE_TAPS>{});
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    T *line = line_memory.of<T>(axis.dilation * (axis.kernel - 1) + axis.output + axis.before);
    if (!line)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    for (std::int64_t channel = begin; channel < end; ++channel)
      gradient(s, x + channel / s.out_channels * s.x.channel, y + channel * s.y.channel, w + channel * s.w.batch, line);
  };
  const std::int64_t macs = s.batch * axis.output * axis.kernel;
  parallel(static_cast<int>(s.threads), s.groups * s.out_channels, larger(1, MACS_PER_THREAD / larger(1, macs)),
           &called<decltype(some)>, &some);
  return failed;
}

} // namespace reconv::RECONV_ISA::channelwise
