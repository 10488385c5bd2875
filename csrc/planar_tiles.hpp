// The tiles of the planar kernels: O outputs × R vectors of positions, which stay in registers while the taps of all
// channels pass by; each loaded vector serves O outputs.
//
// The O outputs are channels. Where a group has one, they are rows of it: a loaded row of the input meets a different
// kernel row for each of them.
#pragma once

#include "planar.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr int MOST_OUTPUTS = 4;

// How many vectors of positions a tile has at most: accumulators, inputs and a weight fit the registers, where there
// are 32 even with room to spare. A tile of 4 × 3 already computes more than it loads; fewer tiles are built sooner.
constexpr int MOST_VECTORS = 6;
template <class T, int O>
constexpr int most_vectors = RECONV_REGISTERS == 16 ? (O > 2 ? 3 : 4) : sizeof(T) == 4 ? MOST_VECTORS : 3;
template <class T> constexpr int most_stacked_rows = sizeof(T) == 4 ? 4 : 2; // 2 or 4: more tiles take long to build

// What tiles read.
template <class T> struct Work {
  Index sources, plane; // channels
  const Index *offsets;
  Index taps, columns, pitch;
  const Rows *rows;
  Index runs;
  bool relu;
};

// A vector of positions: where it starts in the source and in the target, and how much of it is wanted.
struct Spot {
  Index from, to, count;
};

template <class T, int O, int R>
[[gnu::always_inline]] inline void put(const Vector<T> (&acc)[O][R], const Spot *spots, T *y, Index y_step, bool relu) {
  unrolled<R>([&](auto r) {
    const Index count = spots[r].count;
    T *to = y + spots[r].to;
    unrolled<O>([&](auto o) {
      const Vector<T> v = acc[o][r], clipped = relu ? (v < 0 ? Vector<T>{} : v) : v;
      if (count >= lanes<T>)
        store(to + o * y_step, clipped);
      else
        store(to + o * y_step, clipped, count);
    });
  });
}

template <class T, int O, int R>
void tile(const Work<T> &work, const Spot *spots, const T *x, const T *w, const T *bias, T *y, Index y_step) {
  Vector<T> acc[O][R];
  unrolled<O>([&](auto o) { unrolled<R>([&](auto r) { acc[o][r] = Vector<T>{} + bias[o]; }); });
  const T *from[R];
  unrolled<R>([&](auto r) { from[r] = x + spots[r].from; });
  for (Index c = 0; c < work.sources; ++c) {
    for (Index t = 0; t < work.taps; ++t, w += O) {
      const Index offset = work.offsets[t];
      Vector<T> values[R];
      unrolled<R>([&](auto r) { values[r] = load(from[r] + offset); });
      unrolled<O>([&](auto o) {
        const Vector<T> weight = Vector<T>{} + w[o];
        unrolled<R>([&](auto r) { acc[o][r] += weight * values[r]; });
      });
    }
    unrolled<R>([&](auto r) { from[r] += work.plane; });
  }
  put(acc, spots, y, y_step, work.relu);
}

// A row of the input for outputs First … Last, of which output o meets the kernel row that is o rows before w.
template <class T, int O, int R, int First, int Last>
[[gnu::always_inline]] inline void row_of_taps(const T *x, const Index *offsets, Index columns, const T *w,
                                               Vector<T> (&acc)[O][R]) {
  const Index start = offsets[0];
  for (Index t = 0; t < columns; ++t) {
    const T *at = x + (offsets[t] - start);
    Vector<T> values[R];
    unrolled<R>([&](auto r) { values[r] = load(at + r * lanes<T>); });
    unrolled<Last - First + 1>([&](auto i) {
      constexpr int o = First + i;
      const Vector<T> weight = Vector<T>{} + w[t - o * columns];
      unrolled<R>([&](auto r) { acc[o][r] += weight * values[r]; });
    });
  }
}

// O rows of one output channel, R neighbouring vectors of each; every run of kernel rows has at least O.
template <class T, int O, int R>
void stacked(const Work<T> &work, const Spot *spots, const T *x, const T *w, const T *bias, T *y, Index y_step) {
  x += spots[0].from;
  Vector<T> acc[O][R];
  unrolled<O>([&](auto o) { unrolled<R>([&](auto r) { acc[o][r] = Vector<T>{} + *bias; }); });
  const Index columns = work.columns;
  for (Index c = 0; c < work.sources; ++c, x += work.plane)
    for (Index run = 0; run < work.runs; ++run) {
      const Index *offsets = work.offsets + (work.rows[run].first - work.rows->first), count = work.rows[run].count;
      const T *at = x + offsets[0];
      unrolled<O - 1>([&](auto i) {
        row_of_taps<T, O, R, 0, i>(at, offsets, columns, w, acc);
        at += work.pitch, w += columns;
      });
      for (Index row = O - 1; row < count; ++row, at += work.pitch, w += columns)
        row_of_taps<T, O, R, 0, O - 1>(at, offsets, columns, w, acc);
      unrolled<O - 1>([&](auto i) {
        row_of_taps<T, O, R, i + 1, O - 1>(at + i * work.pitch, offsets, columns, w + i * columns, acc);
      });
    }
  put(acc, spots, y, y_step, work.relu);
}

template <class T> using Tile = void (*)(const Work<T> &, const Spot *, const T *, const T *, const T *, T *, Index);

template <class T> struct Tiles {
  int most = 0; // vectors
  Tile<T> of[MOST_VECTORS] = {};
};

template <class T, int O, int... R> constexpr Tiles<T> tiles_of(std::integer_sequence<int, R...>) {
  return {sizeof...(R), {&tile<T, O, R + 1>...}}; // by R − 1
}
template <class T, int O, int... R> constexpr Tiles<T> stacked_of(std::integer_sequence<int, R...>) {
  return {sizeof...(R), {&stacked<T, O, R + 1>...}};
}
template <class T, int O>
constexpr Tiles<T> tiles = tiles_of<T, O>(std::make_integer_sequence<int, most_vectors<T, O>>{});
template <class T, int O>
constexpr Tiles<T> stacks = stacked_of<T, O>(std::make_integer_sequence<int, most_vectors<T, O>>{});

template <class T> constexpr Tiles<T> by_outputs[MOST_OUTPUTS] = {tiles<T, 1>, tiles<T, 2>, tiles<T, 3>, tiles<T, 4>};
template <class T> constexpr const Tiles<T> &by_rows(Index rows) { // 1, 2 or the most
  return rows == 1 ? tiles<T, 1> : rows == 2 ? stacks<T, 2> : stacks<T, most_stacked_rows<T>>;
}

// So many vectors, in tiles of nearly equal size.
template <class T>
void run(const Tiles<T> &tiles, const Work<T> &work, const Spot *spots, Index vectors, const T *x, const T *w,
         const T *bias, T *y, Index y_step) {
  const Index parts = divided_up(vectors, tiles.most), least = vectors / parts;
  Index longer = vectors % parts; // tiles that have one more
  for (Index at = 0; at < vectors; --longer) {
    const Index some = least + (longer > 0);
    tiles.of[some - 1](work, spots + at, x, w, bias, y, y_step);
    at += some;
  }
}

} // namespace
} // namespace reconv::RECONV_ISA
