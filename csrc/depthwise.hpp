// Where the positions of a depthwise convolution meet their taps.
//
// Forward reads x and writes y, the input gradient reads y and writes x: both are the same walk over the map that is
// read, with other steps. Along an axis the taps that meet a written position are an arithmetic progression.
#pragma once

#include "simd.hpp"

namespace reconv::RECONV_ISA::channelwise {

constexpr std::int64_t MACS_PER_THREAD = 200'000; // less is done before another thread has begun

// Positions out_first + out_step·i; their tap t is kernel index tap_first + tap_step·t, and meets the map that is
// read at in_first + in_step·i + in_tap·t.
struct Run {
  std::int64_t positions, out_first, out_step, in_first, in_step, taps, in_tap, tap_first, tap_step;
};

// Divisions take long, and mostly there is nothing to divide by.
inline std::int64_t rounded_up(std::int64_t a, std::int64_t b) { return b == 1 ? a : divided_up(a, b); }

// Indices first … last − 1.
struct Range {
  std::int64_t first, last;
  std::int64_t size() const { return last - first; }
};

inline std::int64_t common_divisor(std::int64_t a, std::int64_t b) { return b ? common_divisor(b, a % b) : a; }

// One axis of the walk.
struct Walk {
  std::int64_t read, written; // sizes
  std::int64_t kernel, stride, dilation, before;
  std::int64_t apart; // dilation without what it has in common with the stride
  bool gradient;

  Walk() = default;
  Walk(const Axis &axis, Pass pass)
      : read(axis.input), written(axis.output), kernel(axis.kernel), stride(axis.stride),
        dilation(axis.kernel == 1 ? axis.stride : axis.dilation), before(axis.before),
        gradient(pass == Pass::input_gradient) {
    apart = dilation / common_divisor(stride, dilation);
    if (gradient)
      read = axis.output, written = axis.input;
  }

  // The taps that meet one written position.
  Run at(std::int64_t out) const {
    if (!gradient)
      return {1, out, 0, stride * out - before, stride, kernel, dilation, 0, 1};
    const std::int64_t target = out + before, step = stride == 1 ? 1 : stride * apart / dilation;
    std::int64_t first = 0; // tap
    while (first < step && stride > 1 && (target - dilation * first) % stride)
      ++first;
    const std::int64_t taps = first < step && first < kernel ? 1 + (step == 1 ? kernel - 1 - first
                                                                              : (kernel - 1 - first) / step)
                                                             : 0;
    const std::int64_t last = taps ? (target - dilation * first) / stride - apart * (taps - 1) : 0;
    return {1, out, 0, last, 0, taps, apart, first + step * (taps - 1), -step};
  }

  // The written positions fall in runs: within one, neighbours share what they read, and have the same taps.
  std::int64_t runs() const { return gradient ? stride * apart : apart; }
  Run run(std::int64_t which, Range written_range) const {
    const std::int64_t step = runs(), beyond = step == 1 ? 0 : written_range.first % step;
    const std::int64_t first = written_range.first - beyond + which;
    Run run = at(first < written_range.first ? first + step : first);
    run.out_step = step;
    run.positions = run.out_first < written_range.last ? rounded_up(written_range.last - run.out_first, step) : 0;
    run.in_step = gradient ? apart : stride * apart;
    return run;
  }

  // What the written positions of a range read, zeros around the map included.
  Range reads(Range range) const {
    const std::int64_t reach = dilation * (kernel - 1);
    if (!gradient)
      return {stride * range.first - before, stride * (range.last - 1) - before + reach + 1};
    const std::int64_t low = range.first + before - reach;
    return {low < 0 ? -divided_up(-low, stride) : low / stride, (range.last - 1 + before) / stride + 1};
  }

  // The taps of a run's first position that meet the map.
  Range inside(const Run &run) const {
    const std::int64_t at = run.in_first, last = at + run.in_tap * (run.taps - 1);
    if (run.taps <= 0 || at >= read || last < 0)
      return {0, 0};
    return {at >= 0 ? 0 : rounded_up(-at, run.in_tap), last < read ? run.taps : rounded_up(read - at, run.in_tap)};
  }
};

// Parts of an axis: what they read and write fits a cache.
struct Strips {
  static constexpr std::int64_t L1_BYTES = 24 * 1024, L2_BYTES = 640 * 1024;
  int axis;
  std::int64_t length, count;

  // A position takes so many bytes; `maps` are read for each that is written. At least `least` parts. The axis is the
  // first that is written more than once, or, if `rows` may be cut, that of the rows, if less is then read twice.
  Strips(const Walk (&walks)[3], std::int64_t position, std::int64_t maps, std::int64_t least, bool rows = false) {
    cut(walks, walks[0].written > 1 ? 0 : walks[1].written > 1 ? 1 : 2, position, maps, least);
    if (axis == 0 && rows && walks[1].written > 1 && count > 1) {
      const Strips planes = *this;
      cut(walks, 1, position, maps, least);
      if (twice(walks[1]) * walks[0].read >= planes.twice(walks[0]) * walks[1].read)
        *this = planes;
    }
  }

  void cut(const Walk (&walks)[3], int along, std::int64_t position, std::int64_t maps, std::int64_t least) {
    axis = along;
    const Walk &walk = walks[axis];
    std::int64_t in = position * maps, out = position; // bytes of one index
    for (int other = axis == 1 ? 0 : axis + 1; other < 3; ++other)
      if (other != axis)
        in *= walks[other].reads({0, walks[other].written}).size(), out *= walks[other].written;
    const auto fitting = [&](std::int64_t bytes) {
      std::int64_t length = walk.written;
      while (length > 1 && walk.reads({0, length}).size() * in + length * out > bytes)
        length = divided_up(length, 2);
      return length;
    };
    length = fitting(L1_BYTES);
    if (4 * (walk.reads({0, 1}).size() - 1) > walk.reads({0, length}).size())
      length = fitting(L2_BYTES);
    length = larger(1, smaller(length, walk.written / least));
    count = divided_up(walk.written, length);
  }

  // Indices of the axis that more than one part reads.
  std::int64_t twice(const Walk &walk) const {
    return (count - 1) * larger(0, 2 * walk.reads({0, length}).size() - walk.reads({0, 2 * length}).size());
  }

  // What a part writes, and what of the map it reads; columns beyond the map among it.
  void ranges(const Walk (&walks)[3], std::int64_t part, Range (&in)[3], Range (&out)[3]) const {
    for (int i = 0; i < 3; ++i) {
      out[i] = {0, walks[i].written};
      if (i == axis)
        out[i] = {part * length, smaller((part + 1) * length, walks[i].written)};
      in[i] = walks[i].reads(out[i]);
      if (i < 2) {
        in[i].first = smaller(larger(in[i].first, 0), walks[i].read);
        in[i].last = larger(in[i].first, smaller(in[i].last, walks[i].read));
      }
    }
  }
};

// Whether the value j taps after the first is met by one of P positions, with the first tap.
template <int P, int S> constexpr bool meets(int j) { return j >= 0 && j % S == 0 && j / S < P; }

// The compiler would otherwise load the value anew for each use, or keep a register for each multiple of a step.
template <class V> [[gnu::always_inline]] inline void in_register([[maybe_unused]] V &value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) > 8)
    asm("" : "+v"(value));
  else
    asm("" : "+r"(value));
#elif defined(__x86_64__)
  if constexpr (sizeof(V) > 8)
    asm("" : "+x"(value));
  else
    asm("" : "+r"(value));
#endif
}

} // namespace reconv::RECONV_ISA::channelwise
