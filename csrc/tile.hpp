// The register tile of a dense convolution: vectors of output channels × positions in a row.
#pragma once

#include "simd.hpp"

namespace reconv::RECONV_ISA {

constexpr int MOST_VECTORS = RECONV_REGISTERS == 32 ? 4 : 2; // of one block of output channels
constexpr std::int64_t WEIGHT_BYTES = 256 * 1024;            // of a block of so many; a quarter of the second cache

// How many positions a tile has with V vectors: accumulators, weights and one input value fit the registers.
template <int V>
constexpr int positions = (RECONV_REGISTERS - 1 - V) / V < 14 ? (RECONV_REGISTERS - 1 - V) / V : 14;

// Into how many blocks of nearly equal size some vectors of output channels fall. Where the weights are many, tiles of
// fewer vectors are longer and read them less often. vector_bytes: the weights of one vector.
inline std::int64_t blocks_of(std::int64_t vectors, std::int64_t vector_bytes) {
  if (MOST_VECTORS == 4 && vector_bytes * 4 > WEIGHT_BYTES)
    return larger(1, vectors / 2);
  return divided_up(vectors, MOST_VECTORS);
}

// The window of neighbouring positions, and where the weights of a block of V vectors of output channels lie:
// [plane][row][column][value of the run][lane].
template <class T> struct Strip {
  const T *weights, *bias;                      // bias: V vectors
  std::int64_t planes, rows, columns, run;      // run: neighbouring values of the input
  std::int64_t plane_step, row_step, column_step;
  std::int64_t weight_plane, weight_row, value; // of the weights: from plane to plane, row to row, value to value
  std::int64_t x_step, y_step;                  // from position to position
  std::int64_t left;                            // output channels to write
  bool relu;
};

// Computes `count` neighbouring positions: y[p][lane] = bias + Σ weights · x over the window.
template <class T> using RunStrip = void (*)(const Strip<T> &strip, const T *x, T *y, std::int64_t count);

// By the number of vectors, 1 … MOST_VECTORS: csrc/tile.cpp.
template <class T> RunStrip<T> strip_of(std::int64_t vectors);

template <class F> void called(const void *body, std::int64_t begin, std::int64_t end) {
  (*static_cast<const F *>(body))(begin, end);
}

// Runs body(begin, end) over parts of 0 … count.
template <class F>
void in_parallel(Parallel parallel, std::int64_t threads, std::int64_t count, std::int64_t grain, const F &body) {
  if (count > 0)
    parallel(static_cast<int>(threads), count, larger(1, grain), &called<F>, &body);
}

} // namespace reconv::RECONV_ISA
