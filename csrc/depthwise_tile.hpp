// A tile: P positions of a row × one vector of channels, in registers while the window passes by.
#pragma once

#include "depthwise.hpp"

namespace reconv::RECONV_ISA::channelwise {

constexpr int AHEAD = 2; // blocks: what a large map holds of them is called for early

// One row that is written: how many planes and rows of taps it meets, and where it, they and their weights begin.
struct Row {
  std::int64_t planes, rows, x, w, y;
};

// What the tiles of some rows have in common. Steps are in elements.
struct Window {
  const Row *rows;
  std::int64_t row_count;
  std::int64_t maps, x_step[3], w_step[3];        // maps that are summed, planes and rows of taps
  std::int64_t taps, x_tap, w_tap;                // taps of a kernel row
  std::int64_t x_position, y_position;            // from position to position
  std::int64_t blocks, last_block, block_weights; // vectors of channels: the last may overlap the one before it
  std::uint64_t before, inside;                   // edges: columns before the map's first, and columns of the map
  bool ahead, relu;
};

template <class T> [[gnu::always_inline]] inline const T *after(const T *from, std::int64_t bytes) {
  return reinterpret_cast<const T *>(reinterpret_cast<const char *>(from) + bytes);
}

// The last row of taps, which none of the tiles above has read, and where the tile will be written.
template <class T, int P> void call_for(const Window &window, const T *x, const T *y) {
  for (const Row *row = window.rows; row < window.rows + window.row_count; ++row) {
    const T *from = x + row->x + (row->planes - 1) * window.x_step[1] + (row->rows - 1) * window.x_step[2] +
                    window.taps / 2 * window.x_tap;
    const T *to = y + row->y;
    for (int p = 0; p < P; ++p, from += window.x_position, to += window.y_position) {
      __builtin_prefetch(from);
      if (window.x_position == 2 * window.x_tap)
        __builtin_prefetch(from + window.x_tap);
      __builtin_prefetch(to, 1);
    }
  }
}

// S: positions between the taps of neighbours, 0 where that is no whole number. Edge: some taps are beyond the map.
template <class T, int P, int S, bool Edge>
void tile(const Window &window, const T *x, const T *weights, const T *bias, T *y) {
  constexpr int L = lanes<T>;
  std::int64_t x_one = window.x_tap * sizeof(T), x_three = 3 * x_one, w_one = window.w_tap * sizeof(T);
  in_register(x_one), in_register(x_three), in_register(w_one);
  for (std::int64_t block = 0; block < window.blocks; ++block, weights += window.block_weights) {
    const std::int64_t first = smaller(block * L, window.last_block);
    Vector<T> acc[P];
    if (window.ahead) { // past the last block those of the tile to the right
      const std::int64_t right = (block + AHEAD) / window.blocks;
      const std::int64_t later = smaller((block + AHEAD - right * window.blocks) * L, window.last_block);
      call_for<T, P>(window, x + later + right * P * window.x_position, y + later + right * P * window.y_position);
    }

    const auto some = [&](auto count, const T *from, const T *w, std::uint64_t column) __attribute__((always_inline)) {
      constexpr int K = count;
      Vector<T> weight[K];
      for (int t = 0; t < K; ++t)
        weight[t] = load(after(w, t * w_one));
      if constexpr (S > 0) // in a loop, the compiler would write each test of an edge twice
        unrolled<S *(P - 1) + K>([&](auto j) __attribute__((always_inline)) {
          if (!Edge || column + j < window.inside) {
            Vector<T> value = load(after(from, j % 4 == 3 ? x_three : j % 4 * x_one));
            in_register(value);
            RECONV_UNROLLED
            for (int k = 0; k < K; ++k)
              if (meets<P, S>(j - k))
                acc[(j - k) / S] += value * weight[k];
          }
          if constexpr (j % 4 == 3) {
            from = after(from, 4 * x_one);
            in_register(from);
          }
        });
      else {
        RECONV_UNROLLED
        for (int p = 0; p < P; ++p, from += window.x_position)
          acc[p] += load(from) * weight[0];
      }
    };

    for (const Row *row = window.rows; row < window.rows + window.row_count; ++row) {
      const Vector<T> start = load(bias + first);
      RECONV_UNROLLED
      for (int p = 0; p < P; ++p)
        acc[p] = start;
      // A few taps of all rows of the kernel at a time: from row to row there is little else to do.
      std::int64_t tap = 0;
      const auto all = [&](auto count) __attribute__((always_inline)) {
        for (; tap + count <= window.taps; tap += count)
          for (std::int64_t map = 0; map < window.maps; ++map)
            for (std::int64_t plane = 0; plane < row->planes; ++plane) {
              const T *from = x + first + row->x + map * window.x_step[0] + plane * window.x_step[1];
              const T *w = weights + row->w + map * window.w_step[0] + plane * window.w_step[1];
              from += tap * window.x_tap, w += tap * window.w_tap;
              for (std::int64_t i = 0; i < row->rows; ++i, from += window.x_step[2], w += window.w_step[2])
                some(count, from, w, tap - window.before);
            }
      };
      if constexpr (S == 1 && P % 7 == 0 && RECONV_REGISTERS == 32 && sizeof(T) == 4) { // the most frequent tiles
        all(std::integral_constant<int, 7>{});
        all(std::integral_constant<int, 5>{});
      }
      if constexpr (S > 0)
        all(std::integral_constant<int, 3>{});
      all(std::integral_constant<int, 1>{});
      if (window.relu) {
        RECONV_UNROLLED
        for (int p = 0; p < P; ++p)
          acc[p] = acc[p] < 0 ? Vector<T>{} : acc[p];
      }
      T *to = y + first + row->y;
      RECONV_UNROLLED
      for (int p = 0; p < P; ++p)
        store(to + p * window.y_position, acc[p]);
    }
  }
}

template <class T> using Tile = void (*)(const Window &, const T *, const T *, const T *, T *);

constexpr int TILE_SIZES[] = {1, 2, 4, 7, 10, 14};
constexpr int SIZES = RECONV_REGISTERS == 32 ? 6 : 4; // that the registers hold

template <class T> struct Tiles {
  Tile<T> of[SIZES][3][2]; // size, S, Edge
};

template <class T, int... I> constexpr Tiles<T> tiles_of(std::integer_sequence<int, I...>) {
  return {{{{&tile<T, TILE_SIZES[I], 0, false>, nullptr},
            {&tile<T, TILE_SIZES[I], 1, false>, &tile<T, TILE_SIZES[I], 1, true>},
            {&tile<T, TILE_SIZES[I], 2, false>, &tile<T, TILE_SIZES[I], 2, true>}}...}};
}

// The size whose tiles cover so many positions with the least work: those past the end overlap the ones before.
inline int size_for(std::int64_t positions) {
  int best = 0;
  std::int64_t least = 0;
  for (int i = 0; i < SIZES && TILE_SIZES[i] <= positions; ++i) {
    const std::int64_t work = divided_up(positions, TILE_SIZES[i]) * (TILE_SIZES[i] + 2);
    if (i == 0 || work <= least)
      best = i, least = work;
  }
  return best;
}

} // namespace reconv::RECONV_ISA::channelwise
