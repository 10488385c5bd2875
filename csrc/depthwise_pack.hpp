// Maps of a block of channels: copied to [plane][row][column][lane] and back, whatever their layout and type.
#pragma once

#include "depthwise.hpp"

namespace reconv::RECONV_ISA::channelwise {

// The channels that a vector holds. Lanes that are not used repeat the first one, and are never written back.
template <class S> struct Block {
  static constexpr int L = lanes<Computed<S>>;
  std::int64_t offset[L]; // of a lane's channel, in elements
  std::int64_t used, channels; // lanes, and the neighbouring channels they come from
  bool neighbours;
  Vector<std::conditional_t<sizeof(Computed<S>) == 4, std::int32_t, std::int64_t>> order; // lane -> channel of them

  // From lane `first` of all; `repeat` neighbouring lanes share a channel.
  Block(std::int64_t first, std::int64_t all, std::int64_t stride, std::int64_t repeat) {
    used = smaller(L, all - first);
    neighbours = stride == 1;
    channels = (first + used - 1) / repeat - first / repeat + 1;
    for (int lane = 0; lane < L; ++lane) {
      const std::int64_t channel = (first + (lane < used ? lane : 0)) / repeat;
      offset[lane] = channel * stride;
      order[lane] = channel - first / repeat;
    }
    repeated = repeat > 1;
  }
  bool repeated, ahead = false; // ahead: the next block is wanted soon
};

// `count` neighbouring values of every lane's channel; after each `width` of them `skip` elements are left out in `to`.
template <class S, class T = Computed<S>>
void pack_turned(const S *from, const Block<S> &block, std::int64_t count, std::int64_t width, std::int64_t skip,
                 T *to) {
  constexpr int L = lanes<T>;
  std::int64_t column = 0;
  for (std::int64_t i = 0; i < count; i += L) {
    Vector<T> rows[L];
    const std::int64_t some = smaller(L, count - i);
    if (some == L) {
      RECONV_UNROLLED
      for (int lane = 0; lane < L; ++lane)
        rows[lane] = load(from + block.offset[lane] + i);
    } else
      for (int lane = 0; lane < L; ++lane)
        rows[lane] = load(from + block.offset[lane] + i, some);
    transpose<T>(rows);
    if (some == L && column + L < width) {
      RECONV_UNROLLED
      for (int j = 0; j < L; ++j)
        store(to + j * L, rows[j]);
      to += L * L, column += L;
    } else
      for (int j = 0; j < some; ++j) {
        store(to, rows[j]);
        to += L;
        if (++column == width)
          column = 0, to += skip;
      }
  }
}

template <class S, class T = Computed<S>>
void pack_row(const S *from, std::int64_t step, const Block<S> &block, std::int64_t count, T *to) {
  constexpr int L = lanes<T>;
  if (block.neighbours) {
    from += block.offset[0];
    if (block.ahead)
      for (std::int64_t i = 0; i < count; ++i)
        __builtin_prefetch(from + i * step + L, 0, 2);
    if (block.channels == L && !block.repeated)
      for (std::int64_t i = 0; i < count; ++i)
        store(to + i * L, load(from + i * step));
    else if (block.channels == L)
      for (std::int64_t i = 0; i < count; ++i)
        store(to + i * L, __builtin_shuffle(load(from + i * step), block.order));
    else
      for (std::int64_t i = 0; i < count; ++i)
        store(to + i * L, __builtin_shuffle(load(from + i * step, block.channels), block.order));
  } else if (step == 1)
    pack_turned(from, block, count, count, 0, to);
  else
    for (std::int64_t i = 0; i < count; ++i)
      for (int lane = 0; lane < L; ++lane)
        to[i * L + lane] = widened(from[i * step + block.offset[lane]]);
}

// Few, mostly.
template <class T> T *zero_vectors(T *to, std::int64_t count) {
  for (T *end = to + count; to < end; to += lanes<T>)
    store(to, Vector<T>{});
  return to;
}

// The ranges of a map, of which those of planes and rows lie within it; columns beyond it become zeros.
template <class S, class T = Computed<S>>
void pack_map(const S *from, const std::int64_t (&step)[3], std::int64_t width, const Range (&ranges)[3],
              const Block<S> &block, T *to) {
  constexpr int L = lanes<T>;
  const Range &planes = ranges[0], &rows = ranges[1], &columns = ranges[2];
  const Range held{larger(columns.first, 0), smaller(columns.last, width)};
  if (held.size() <= 0) {
    zeros(to, planes.size() * rows.size() * columns.size() * L);
    return;
  }
  const std::int64_t left = (held.first - columns.first) * L, right = (columns.last - held.last) * L;
  const bool whole = !block.neighbours && step[2] == 1 && step[1] == width && held.size() == width;
  for (std::int64_t z = planes.first; z < planes.last; ++z) {
    if (whole) // rows follow each other: vectors go on from one to the next
      pack_turned(from + z * step[0] + rows.first * step[1], block, rows.size() * width, width, left + right,
                  to + left);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      to = zero_vectors(to, left);
      if (!whole)
        pack_row(from + z * step[0] + y * step[1] + held.first * step[2], step[2], block, held.size(), to);
      to = zero_vectors(to + held.size() * L, right);
    }
  }
}

// The same way back, of `count` neighbouring values.
template <class S, class T = Computed<S>>
void unpack_row(const T *from, std::int64_t step, const Block<S> &block, std::int64_t count, S *to) {
  constexpr int L = lanes<T>;
  if (block.neighbours) {
    to += block.offset[0];
    if (block.used == L)
      for (std::int64_t i = 0; i < count; ++i)
        store(to + i * step, load(from + i * L));
    else
      for (std::int64_t i = 0; i < count; ++i)
        store(to + i * step, load(from + i * L), block.used);
  } else {
    for (std::int64_t i = 0; i < count; i += L) {
      const std::int64_t some = smaller(L, count - i);
      if (step == 1) {
        Vector<T> rows[L];
        RECONV_UNROLLED
        for (int j = 0; j < L; ++j)
          rows[j] = j < some ? load(from + (i + j) * L) : Vector<T>{};
        transpose<T>(rows);
        for (int lane = 0; lane < block.used; ++lane)
          if (some == L)
            store(to + block.offset[lane] + i, rows[lane]);
          else
            store(to + block.offset[lane] + i, rows[lane], some);
      } else
        for (std::int64_t j = 0; j < some; ++j) {
          S values[L];
          store(values, load(from + (i + j) * L));
          for (int lane = 0; lane < block.used; ++lane)
            to[(i + j) * step + block.offset[lane]] = values[lane];
        }
    }
  }
}

template <class S, class T = Computed<S>>
void unpack_map(const T *from, const std::int64_t (&step)[3], const Range (&ranges)[3], const Block<S> &block, S *to) {
  const std::int64_t planes = ranges[0].size(), rows = ranges[1].size(), columns = ranges[2].size();
  to += ranges[0].first * step[0] + ranges[1].first * step[1] + ranges[2].first * step[2];
  std::int64_t run = columns, runs = rows, outer = planes; // neighbours in memory are one run
  if (step[1] == columns * step[2]) {
    run *= rows, runs = 1;
    if (step[0] == run * step[2])
      run *= planes, outer = 1;
  }
  for (std::int64_t z = 0; z < outer; ++z)
    for (std::int64_t y = 0; y < runs; ++y, from += run * lanes<T>)
      unpack_row(from, step[2], block, run, to + z * step[0] + y * step[1]);
}

// The weights of a block as [tap][lane]; `taps` are those of all axes.
template <class S, class T = Computed<S>>
void pack_weights(const S *from, const Strides &w, const Axis (&axes)[3], const Block<S> &block, T *to) {
  const std::int64_t columns = axes[2].kernel, rows = axes[1].kernel, planes = axes[0].kernel;
  const Range ranges[3] = {{0, planes}, {0, rows}, {0, columns}};
  const bool whole = (columns == 1 || w.axis[2] == 1) && (rows == 1 || w.axis[1] == columns) &&
                     (planes == 1 || w.axis[0] == rows * columns);
  if (whole && !block.neighbours)
    pack_turned(from, block, planes * rows * columns, planes * rows * columns, 0, to);
  else
    pack_map(from, w.axis, columns, ranges, block, to);
}

template <class F> void called(const void *body, std::int64_t begin, std::int64_t end) {
  (*static_cast<const F *>(body))(begin, end);
}

} // namespace reconv::RECONV_ISA::channelwise
