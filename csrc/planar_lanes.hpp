// What the planar kernels share where channels lie side by side: a vector then holds all channels of some groups at one
// position, of x and of y alike.
//
// A weight joins two channels of a group. Let lane o ^ r read beside lane o: over all r below the group's size, each
// output meets each input once.
//     y[o] = Σ_r Σ_k w[o, o ^ r, k] · x[o ^ r, k]
// Each r has a sum of its own, which is kept in the lane of the input; only the sums are moved to the lanes of outputs.
#pragma once

#include "planar.hpp"

namespace reconv::RECONV_ISA {

// Defined in planar_lanes.cpp and planar_lanes_weight.cpp.
template <class S> int planar_lanes(const ConvShape &, const S *source, const S *w, const S *b, S *target, Parallel);
template <class S> int planar_lanes_weights(const ConvShape &, const S *x, S *w, const S *y, Parallel);

// Whether groups are of 2, 4 or 8 channels, and lie in the lanes of vectors.
template <class S> bool in_lanes(const ConvShape &shape) {
  const Index channels = shape.in_channels;
  const auto side_by_side = [](const Strides &s) { return s.channel == 1 && s.axis[2] != 1; };
  return channels == shape.out_channels && (channels == 2 || channels == 4 || channels == 8) &&
         channels <= lanes<Computed<S>> && side_by_side(shape.x) && side_by_side(shape.y);
}

// How work is cut: into blocks of vectors of channels, which are packed together, and into strips of positions.
struct Cut {
  Index block, blocks;  // vectors; how many
  int axis;             // that is cut into strips
  Index strip, strips;  // positions; how many
  Index high;           // rows that pass by at once
  Layout layout;        // of a strip, with the zeros around it: values are vectors, in the order of positions
};

constexpr Index MOST_VECTORS = 8;         // of a block
constexpr Index CHUNK = 128;              // positions of a strip along the last axis, at least
constexpr Index STRIP_BYTES = 320 << 10;  // of packed rows: they stay in the second cache

// At least so many strips, where there is enough to cut. at_once: positions, whose rows pass by for each vector.
inline Cut cut_of(const Walk (&walks)[3], Index vectors, Index least_strips, Index at_once) {
  Cut cut{};
  cut.block = divided_up(vectors, divided_up(vectors, MOST_VECTORS)), cut.blocks = divided_up(vectors, cut.block);
  Index positions[3] = {walks[0].positions, walks[1].positions, walks[2].positions};
  cut.axis = positions[0] > 1 ? 0 : positions[1] > 1 ? 1 : 2;
  Index &strip = positions[cut.axis];
  const Walk &walk = walks[cut.axis];
  const Index all = strip, halo = (walk.span - 1) / walk.step; // packed again for each strip
  const Index least = larger(cut.axis == 2 ? CHUNK : 8, 2 * halo);
  const auto bytes = [&] {
    cut.layout = {{}, 1, 1};
    for (int a = 0; a < 3; ++a) {
      const Walk &w = walks[a];
      cut.layout.lines[a] = {1, 1, (positions[a] - 1) * w.step + w.span, w.lowest, 0, w.size};
      cut.layout.volume *= cut.layout.lines[a].length;
    }
    cut.layout.plane = cut.layout.volume;
    return cut.layout.plane * cut.block * RECONV_VECTOR_BYTES;
  };
  bytes();
  if (positions[0] * positions[1] * positions[2] == 0) {
    cut.layout.plane = 0;
    return cut;
  }
  strip = smaller(all, least);
  while (cut.block > 1 && bytes() > STRIP_BYTES)
    cut.block = divided_up(cut.block, 2);
  cut.blocks = divided_up(vectors, cut.block);
  strip = all;
  while (strip >= 2 * least && (bytes() > STRIP_BYTES || cut.blocks * divided_up(all, strip) < least_strips))
    strip = divided_up(strip, 2);
  cut.strips = divided_up(all, strip), cut.strip = strip = divided_up(all, cut.strips);
  bytes(); // of the last one
  cut.high = smaller(positions[1], divided_up(at_once, positions[2]));
  return cut;
}

// How far the rows of a strip are packed, of some vectors' channels at once: just before they are needed.
template <class S> struct Packed {
  using T = Computed<S>;
  const Layout &layout;
  const S *from; // the first channel of a sample
  const Strides &strides;
  Index channels; // in all, of as many vectors as they need; each has a plane
  T *to;
  Index rows = 0;

  void up_to(Index row) {
    for (; rows < row; ++rows)
      pack(rows);
  }

  void pack(Index row) {
    constexpr int L = lanes<T>;
    const auto &[d, h, w] = layout.lines;
    const Index deep = d.lowest + row / h.length, high = h.lowest + row % h.length;
    const bool inside = d.first <= deep && deep < d.end && h.first <= high && high < h.end;
    const Within some = inside ? within(w, 0) : Within{0, 0};
    const Index plane = layout.plane * L, whole = channels / L * L;
    T *at = to + row * w.length * L;
    const S *x = from + deep * strides.axis[0] + high * strides.axis[1] + (w.lowest + some.from) * strides.axis[2];
    T *first = at + some.from * L;
    for (Index i = some.from; i < some.to; ++i, first += L, x += strides.axis[2]) {
      T *vector = first;
      for (Index c = 0; c < whole; c += L, vector += plane)
        store(vector, load(x + c));
      if (whole < channels)
        store(vector, load(x + whole, channels - whole));
    }
    for (Index c = 0; c < channels; c += L, at += plane) {
      clear(at, 0, some.from * L);
      clear(at, some.to * L, w.length * L);
    }
  }
};

} // namespace reconv::RECONV_ISA
