// What the planar kernels share: how planes are laid out so that each tap of a window is one offset, and the packing.
//
// A channel's values are sorted by residue modulo the stride, axis by axis, and lie with the zeros around them in rows
// of one length. Neighbouring positions of the output then meet neighbouring values, and so do the positions of the
// next row: a strip of rows is one run of vectors, in which the columns past a row's end are computed and dropped.
#pragma once

#include "simd.hpp"

namespace reconv::RECONV_ISA {

using Index = std::int64_t;

// Computes the weight gradient; defined in planar_weight.cpp.
template <class S> int planar_weights(const ConvShape &, const S *x, S *w, const S *y, Parallel);

// The taps that the positions first, first + step, … of an axis meet: evenly spaced, in rising order of what they read.
struct Comb {
  Index positions, taps;
  Index tap, tap_step;       // kernel indices
  Index offset, offset_step; // of the value that position 0 meets, counted from the lowest one
};

// One axis as it is walked: position u reads the tensor at step·u + lowest + 0 … span − 1.
struct Walk {
  Index positions, step, lowest, span, size;
  Index phases; // positions written are this far apart: residue r is a walk of its own
};

// One axis in scratch: value i of residue r is the tensor's at lowest + step·i + r, or 0 where that is outside.
struct Line {
  Index step, residues, length, lowest, first, end;
};

struct Layout {
  Line lines[3];
  Index volume, plane; // values of one residue of all axes; of a channel

  Index pitch() const { return lines[2].length; }
  Index offset(Index d, Index h, Index w) const { // of what lies d, h, w past the lowest
    const Line *l = lines;
    const Index residue = (d % l[0].step * l[1].residues + h % l[1].step) * l[2].residues + w % l[2].step;
    return residue * volume + (d / l[0].step * l[1].length + h / l[1].step) * l[2].length + w / l[2].step;
  }
};

// Kernel rows whose values lie a row apart.
struct Rows {
  Index first, count; // tap, rows
};

// The outputs of one residue per axis, and the window that they see.
struct Phase {
  Comb combs[3];
  Index first, taps, columns; // in the lists of taps; of a kernel row
  Index rows, runs;           // in the list of Rows; how many
  bool stacked;               // output rows are a row apart as well
};

// Of every tap, phase by phase.
struct Taps {
  Index *offsets, *weights; // in a packed channel; in the tensor of weights
  Rows *rows;
  Phase *phases;
  Index count;
};

inline Comb comb_of(const Axis &a, Pass pass, Index residue) {
  if (pass != Pass::input_gradient)
    return {a.output, a.kernel, 0, 1, -a.before, a.dilation};
  const Index s = a.stride, positions = a.input > residue ? divided_up(a.input - residue, s) : 0;
  Index common = a.dilation, rest = s; // the greatest common divisor
  while (rest) {
    const Index next = common % rest;
    common = rest, rest = next;
  }
  const Index every = s / common;
  for (Index k = 0; k < smaller(every, a.kernel); ++k)
    if (const Index from = residue + a.before - a.dilation * k; from % s == 0) {
      const Index taps = (a.kernel - 1 - k) / every + 1, step = a.dilation / common;
      return {positions, taps, k + (taps - 1) * every, -every, from / s - (taps - 1) * step, step};
    }
  return {positions, 0, 0, 0, 0, 0};
}

inline Walk walk_of(const Axis &a, Pass pass) {
  const bool back = pass == Pass::input_gradient;
  Walk walk{0, back ? 1 : a.stride, 0, 0, back ? a.output : a.input, back ? a.stride : 1};
  Index highest = 0;
  bool any = false;
  for (Index r = 0; r < walk.phases; ++r) {
    const Comb comb = comb_of(a, pass, r);
    walk.positions = larger(walk.positions, comb.positions);
    if (!comb.taps)
      continue;
    const Index last = comb.offset + (comb.taps - 1) * comb.offset_step;
    walk.lowest = any ? smaller(walk.lowest, comb.offset) : comb.offset;
    highest = any ? larger(highest, last) : last;
    any = true;
  }
  walk.span = highest - walk.lowest + 1;
  return walk;
}

// The layout for strips of so many positions, with some values to spare behind each channel.
inline Layout layout_of(const Walk (&walks)[3], const Index (&positions)[3], Index slack) {
  Layout layout{{}, 1, 1};
  for (int a = 0; a < 3; ++a) {
    const Walk &walk = walks[a];
    layout.lines[a] = {walk.step, smaller(walk.step, walk.span), positions[a] + (walk.span - 1) / walk.step,
                       walk.lowest, 0, walk.size};
    layout.volume *= layout.lines[a].length;
    layout.plane *= layout.lines[a].residues;
  }
  layout.plane = layout.plane * layout.volume + slack;
  return layout;
}

// Lists the taps of every phase. Kernel rows of one residue follow one another.
inline bool list_taps(const ConvShape &shape, const Walk (&walks)[3], const Layout &layout, Scratch &memory, Taps &to) {
  const Index all = shape.axes[0].kernel * shape.axes[1].kernel * shape.axes[2].kernel;
  const Index phases = walks[0].phases * walks[1].phases * walks[2].phases;
  char *at = memory.of<char>(phases * sizeof(Phase) + all * (sizeof(Rows) + 2 * sizeof(Index)));
  if (!at)
    return false;
  to.phases = reinterpret_cast<Phase *>(at), to.rows = reinterpret_cast<Rows *>(to.phases + phases);
  to.offsets = reinterpret_cast<Index *>(to.rows + all), to.weights = to.offsets + all;
  to.count = phases;
  Index taps = 0, runs = 0;
  for (Index i = 0; i < phases; ++i) {
    const Index residues[3] = {i / walks[2].phases / walks[1].phases, i / walks[2].phases % walks[1].phases,
                               i % walks[2].phases};
    Phase &phase = to.phases[i];
    for (int a = 0; a < 3; ++a) {
      phase.combs[a] = comb_of(shape.axes[a], shape.pass, residues[a]);
      phase.combs[a].offset -= walks[a].lowest;
    }
    const auto &[d, h, w] = phase.combs;
    phase.first = taps, phase.rows = runs, phase.columns = w.taps;
    const Line &line = layout.lines[1];
    const bool none = d.taps * h.taps * w.taps == 0;
    phase.stacked = !none && line.step % h.offset_step == 0;
    for (Index j = 0; j < (none ? 0 : d.taps); ++j)
      for (Index residue = 0; residue < line.residues; ++residue) {
        Rows rows{taps, 0};
        for (Index k = 0; k < h.taps; ++k) {
          const Index row = h.offset + k * h.offset_step;
          if (row % line.step != residue)
            continue;
          ++rows.count;
          for (Index l = 0; l < w.taps; ++l, ++taps) {
            to.offsets[taps] = layout.offset(d.offset + j * d.offset_step, row, w.offset + l * w.offset_step);
            to.weights[taps] = (d.tap + j * d.tap_step) * shape.w.axis[0] + (h.tap + k * h.tap_step) * shape.w.axis[1] +
                               (w.tap + l * w.tap_step) * shape.w.axis[2];
          }
        }
        if (rows.count)
          to.rows[runs++] = rows;
      }
    phase.taps = taps - phase.first, phase.runs = runs - phase.rows;
  }
  return true;
}

// Which values of a residue lie in the tensor: from … to − 1.
struct Within {
  Index from, to;
};
inline Within within(const Line &line, Index residue) {
  const auto before = [&](Index end) { // how many lie before it
    const Index left = end - line.lowest - residue;
    return left <= 0 ? 0 : smaller(line.step == 1 ? left : divided_up(left, line.step), line.length);
  };
  const Index from = before(line.first);
  return {from, larger(from, before(line.end))};
}

// At most `count` lanes; the others are 0.
template <class S> [[gnu::always_inline]] inline Vector<Computed<S>> load_most(const S *from, Index count) {
  return count >= lanes<Computed<S>> ? load(from) : count > 0 ? load(from, count) : Vector<Computed<S>>{};
}

// Every second one of so many values: the even lanes of two vectors.
template <class S> [[gnu::always_inline]] inline Vector<Computed<S>> load_halved(const S *from, Index count) {
  using T = Computed<S>;
  using Lane = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  Vector<Lane> even;
  for (int i = 0; i < lanes<T>; ++i)
    even[i] = 2 * i;
  return __builtin_shuffle(load_most(from, count), load_most(from + lanes<T>, count - lanes<T>), even);
}

// Rows are written in the order of their addresses and by whole vectors: what a vector writes past the end is zero, as
// the columns there are, or is written again.
template <class T> [[gnu::always_inline]] inline void clear(T *row, Index from, Index to) {
  for (; from < to; from += lanes<T>)
    store(row + from, Vector<T>{});
}

// Returns up to where values or zeros were written.
template <class S> [[gnu::always_inline]] inline Index pack_row(const S *from, Index stride, Index count, Computed<S> *to) {
  constexpr int L = lanes<Computed<S>>;
  Index i = 0;
  if (stride == 1)
    for (; i < count; i += L)
      store(to + i, load_most(from + i, count - i));
  else if (stride == 2)
    for (; i < count; i += L)
      store(to + i, load_halved(from + 2 * i, 2 * (count - i) - 1));
  else
    for (; i < count; ++i)
      to[i] = widened(from[i * stride]);
  return i;
}

// Channels lie side by side: squares of positions × channels are turned over.
template <class S>
Index pack_turned(const S *from, Index stride, Index count, Index channels, Index plane, Computed<S> *to) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  for (Index c = 0; c < channels; c += L)
    for (Index i = 0; i < count; i += L) {
      const Index wide = channels - c, rest = count - i;
      const S *corner = from + i * stride + c;
      unrolled<L>([&](auto k) { __builtin_prefetch(corner + (k + 2 * L) * stride); }); // too far apart to be foreseen
      Vector<T> rows[L];
      if (wide >= L && rest >= L)
        unrolled<L>([&](auto k) { rows[k] = load(corner + k * stride); });
      else
        unrolled<L>([&](auto k) {
          rows[k] = k >= rest ? Vector<T>{} : wide >= L ? load(corner + k * stride) : load(corner + k * stride, wide);
        });
      transpose<T>(rows);
      unrolled<L>([&](auto k) {
        if (k < wide)
          store(to + (c + k) * plane + i, rows[k]);
      });
    }
  return divided_up(count, L) * L;
}

// The rows of one residue of every axis, for `planes` channels at once where they are turned over.
template <class S>
void pack_rows(const Layout &layout, const S *from, const Strides &strides, Index deep, Index high, Index residue,
               Index planes, Computed<S> *to) {
  const auto &[d, h, w] = layout.lines;
  const Within some = within(w, residue), rows = within(h, high), slices = within(d, deep);
  const Index stride = w.step * strides.axis[2], width = w.length, count = some.to - some.from;
  from += (d.lowest + deep) * strides.axis[0] + (h.lowest + high) * strides.axis[1] +
          (w.lowest + w.step * some.from + residue) * strides.axis[2];
  for (Index k = 0; k < planes; ++k)
    clear(to + k * layout.plane, 0, some.from);
  for (Index i = 0; i < d.length; ++i)
    for (Index j = 0; j < h.length; ++j, to += width) {
      Index done = 0; // columns
      if (count && slices.from <= i && i < slices.to && rows.from <= j && j < rows.to) {
        const S *row = from + d.step * i * strides.axis[0] + h.step * j * strides.axis[1];
        done = some.from + (planes == 1 ? pack_row(row, stride, count, to + some.from)
                                        : pack_turned(row, stride, count, planes, layout.plane, to + some.from));
      }
      for (Index k = 0; k < planes; ++k) // up to the values of the next row
        clear(to + k * layout.plane, done, i + 1 < d.length || j + 1 < h.length ? width + some.from : width);
    }
}

template <class S>
void pack(const Layout &layout, const S *from, const Strides &strides, Index channels, Computed<S> *to) {
  const auto &[d, h, w] = layout.lines;
  const bool turned = strides.channel == 1 && w.step * strides.axis[2] != 1 && channels * 2 > lanes<Computed<S>>;
  const Index planes = turned ? channels : 1;
  for (Index c = 0; c < channels; c += planes, from += strides.channel, to += layout.plane)
    for (Index i = 0; i < d.residues * h.residues * w.residues; ++i)
      pack_rows(layout, from, strides, i / w.residues / h.residues, i / w.residues % h.residues, i % w.residues, planes,
                to + i * layout.volume);
}

template <class F> void called(const void *body, std::int64_t begin, std::int64_t end) {
  (*static_cast<const F *>(body))(begin, end);
}

} // namespace reconv::RECONV_ISA
