// Dense convolution in one to three dimensions, and its input gradient, which is the transposed convolution.
//
// Both are the same walk with other steps: csrc/phases.hpp. A chunk of the map is brought to channels-last with zeros
// beside its rows; kernel rows and planes outside of the map are left out. Lanes are the channels that are written:
// csrc/tile.hpp.
#include "dense_plan.hpp"
#include "rows.hpp"
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t MACS_PER_THREAD = 200'000; // less is done before another thread has begun

thread_local Scratch packed_weights, packed_block, packed_bias, packed_chunk, written_row;

// A part of the map as the tile reads it; at[low[0], low[1], low[2], channel 0] is where `at` points.
template <class T> struct Map {
  const T *at;
  std::int64_t low[3], pitch[3];
};

template <class S> bool pack_chunk(const Plan &plan, const S *from, std::int64_t which, Map<Computed<S>> &map) {
  using T = Computed<S>;
  if constexpr (std::is_same_v<S, T>)
    if (plan.in_place) {
      map = {from, {0, 0, 0}, {plan.from.axis[0], plan.from.axis[1], plan.from.axis[2]}};
      return true;
    }
  const Range planes = plan.read_by(0, which), rows = plan.read_by(1, which), columns = plan.read_by(2, which);
  const Range kept = inside(columns, plan.from_size[2]);
  const std::int64_t wide = columns.size() * plan.pitch, left = kept.begin - columns.begin;
  T *to = packed_chunk.of<T>(planes.size() * rows.size() * wide + 1);
  map = {to, {planes.begin, rows.begin, columns.begin}, {rows.size() * wide, wide, plan.pitch}};
  if (!to)
    return false;
  for (std::int64_t plane = planes.begin; plane < planes.end; ++plane)
    for (std::int64_t row = rows.begin; row < rows.end; ++row, to += wide) {
      const S *at = from + plane * plan.from.axis[0] + row * plan.from.axis[1] + kept.begin * plan.from.axis[2];
      if (!kept.size()) {
        zeros(to, wide);
        continue;
      }
      zeros(to, left * plan.pitch);
      read_row(at, plan.from.channel, plan.from.axis[2], plan.channels, kept.size(), to + left * plan.pitch,
               plan.pitch);
      zeros(to + (left + kept.size()) * plan.pitch, wide - (left + kept.size()) * plan.pitch);
    }
  return true;
}

// A row of output: a position of a phase on each of the two leading axes, and the taps that it meets.
struct Row {
  const Phase &a, &b;
  std::int64_t t0, t1;
  Range planes, rows;
};

// The rows of one chunk of one group of an image, for some blocks of output channels.
template <class S> struct Chunk {
  using T = Computed<S>;
  const Plan &plan;
  const Map<T> &map;
  const T *weights, *bias;   // of the group
  std::int64_t lanes_before; // of the group, which are not among the weights
  Range blocks;
  T *buffer;                 // of one block of a segment of a row, or of some rows
  S *to;

  // The window at position t of a phase of the last axis, and where it begins in the map.
  Strip<T> strip(const Row &at, const Phase &c, std::int64_t t, Range lane, const T *&x) const {
    const std::int64_t high = plan.axes[1].kernel, wide = plan.axes[2].kernel, width = lane.size();
    const auto [plane_pitch, row_pitch, pitch] = map.pitch;
    Strip<T> strip{};
    strip.bias = bias + lane.begin, strip.relu = plan.relu;
    strip.x_step = c.from_step * pitch;
    x = map.at;
    if (!at.planes.size() || !at.rows.size() || !c.taps)
      return strip; // nothing but the bias
    x += (at.a.from + at.a.from_step * at.t0 + at.a.reach * at.planes.begin - map.low[0]) * plane_pitch +
         (at.b.from + at.b.from_step * at.t1 + at.b.reach * at.rows.begin - map.low[1]) * row_pitch +
         (c.from + c.from_step * t - map.low[2]) * pitch;
    const bool whole = c.taps == 1 || (c.reach == 1 && pitch == plan.channels); // a kernel row is one run
    strip.planes = at.planes.size(), strip.plane_step = at.a.reach * plane_pitch;
    strip.rows = at.rows.size(), strip.row_step = at.b.reach * row_pitch;
    strip.columns = whole ? 1 : c.taps, strip.column_step = c.reach * pitch;
    strip.run = whole ? c.taps * plan.channels : plan.channels;
    strip.value = width, strip.weight_row = c.taps * plan.channels * width;
    strip.weight_plane = at.b.taps * strip.weight_row;
    const std::int64_t before =
        at.a.taps_before * high * wide + at.a.taps * (at.b.taps_before * wide + at.b.taps * c.taps_before);
    strip.weights = weights + ((lane.begin - lanes_before) * plan.weights.taps + before * width) * plan.channels +
                    at.planes.begin * strip.weight_plane + at.rows.begin * strip.weight_row;
    return strip;
  }

  // A segment of a row: the phases of the last axis one after the other.
  void segment(const Row &at, Range t, Range lane, T *y, std::int64_t y_step) const {
    const RunStrip<T> run = strip_of<T>(lane.size() / lanes<T>);
    const std::int64_t step = plan.phases[2].of[0].step;
    for (std::int64_t i = 0; i < plan.phases[2].count; ++i) {
      const Phase &phase = plan.phases[2].of[i];
      const std::int64_t count = smaller(t.end, phase.count) - t.begin;
      if (count <= 0)
        continue;
      const T *x;
      Strip<T> strip = this->strip(at, phase, t.begin, lane, x);
      strip.left = plan.direct ? smaller(lane.size(), plan.outputs - lane.begin) : lane.size();
      strip.y_step = step * y_step;
      run(strip, x, y + phase.first * y_step, count);
    }
  }

  // The same segment of some rows of one phase, for one block.
  void segments(const Phase &a, std::int64_t t0, const Phase &b, Range t1, Range t, Range lane) const {
    const std::int64_t step = plan.phases[2].of[0].step, y_step = plan.to.axis[2], begin = step * t.begin;
    const std::int64_t wide = smaller(step * t.end, plan.to_size[2]) - begin, count = t1.size() * wide;
    const std::int64_t left = smaller(lane.size(), plan.outputs - lane.begin);
    S *y = to + (a.first + a.step * t0) * plan.to.axis[0] + (b.first + b.step * t1.begin) * plan.to.axis[1] +
           begin * y_step + lane.begin * plan.to.channel;
    if (!plan.direct && y_step == 1) // it has come when it is written
      for (std::int64_t o = 0; o < left; ++o)
        for (std::int64_t p = 0; p < count; p += 64 / sizeof(S))
          __builtin_prefetch(y + o * plan.to.channel + p, 1);
    T *rows = buffer;
    std::int64_t rows_step = lane.size();
    if constexpr (std::is_same_v<S, T>)
      if (plan.direct)
        rows = y, rows_step = y_step;
    for (std::int64_t u = t1.begin; u < t1.end; ++u, rows += wide * rows_step)
      segment({a, b, t0, u, taps_inside(a, t0, plan.from_size[0]), taps_inside(b, u, plan.from_size[1])}, t, lane, rows,
              rows_step);
    if (!plan.direct)
      write_row(buffer, lane.size(), left, count, y, plan.to.channel, y_step);
  }

  void rows(const Phase &a, std::int64_t t0, const Phase &b, Range t1, Range t) const {
    const std::int64_t all = t.size(), parts = divided_up(all, larger(1, SEGMENT / plan.phases[2].of[0].step));
    for (std::int64_t part = 0; part < parts; ++part)
      for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
        const Range some{t.begin + all * part / parts, t.begin + all * (part + 1) / parts};
        segments(a, t0, b, t1, some, plan.lanes_of(block));
      }
  }

  void all(std::int64_t which) const {
    const Range t0 = plan.positions(0, which), t1 = plan.positions(1, which), t2 = plan.positions(2, which);
    for (std::int64_t i = 0; i < plan.phases[0].count; ++i)
      for (std::int64_t t = t0.begin; t < smaller(t0.end, plan.phases[0].of[i].count); ++t)
        for (std::int64_t j = 0; j < plan.phases[1].count; ++j) {
          const std::int64_t end = smaller(t1.end, plan.phases[1].of[j].count);
          for (std::int64_t u = t1.begin; u < end; u += plan.together)
            rows(plan.phases[0].of[i], t, plan.phases[1].of[j], {u, smaller(u + plan.together, end)}, t2);
        }
  }
};

// The weights of one block. Lanes past the last output channel are 0.
template <class S>
void pack_block(const Plan &plan, const S *of_group, Range lane, Computed<S> *to) {
  pack_weights(plan.weights, of_group + lane.begin * plan.weights.lane_step,
               smaller(lane.size(), plan.outputs - lane.begin), lane.size(), to);
}

// The weights of all blocks.
template <class S> Computed<S> *pack(const Plan &plan, const ConvShape &s, const S *w, Parallel parallel) {
  using T = Computed<S>;
  const std::int64_t window = plan.weights.taps * plan.channels, all = plan.vectors * lanes<T>;
  T *weights = packed_weights.of<T>(s.groups * all * window + 1);
  if (weights)
    in_parallel(parallel, s.threads, s.groups * plan.blocks, MACS_PER_THREAD / larger(1, window * 32),
                [&](std::int64_t begin, std::int64_t end) {
                  for (std::int64_t job = begin; job < end; ++job) {
                    const std::int64_t group = job / plan.blocks;
                    const Range lane = plan.lanes_of(job % plan.blocks);
                    pack_block(plan, w + group * s.out_channels * s.w.batch, lane,
                               weights + (group * all + lane.begin) * window);
                  }
                });
  return weights;
}

template <class S> Computed<S> *pack_bias(const Plan &plan, const ConvShape &s, const S *b) {
  using T = Computed<S>;
  const std::int64_t all = plan.vectors * lanes<T>;
  T *bias = packed_bias.of<T>(s.groups * all + 1);
  if (bias)
    zeros(bias, s.groups * all);
  for (std::int64_t group = 0; group < s.groups && b && bias; ++group)
    converted(b + group * plan.outputs, plan.outputs, bias + group * all);
  return bias;
}

template <class S>
int computed(const ConvShape &s, const S *from, const S *w, const S *b, S *to, Parallel parallel) {
  using T = Computed<S>;
  Plan plan{};
  if (!prepare<S>(plan, s))
    return 1;
  const std::int64_t window = plan.weights.taps * plan.channels, all = plan.vectors * lanes<T>;
  const std::int64_t maps = s.batch * s.groups;
  const bool apart = plan.heavy || maps * plan.chunks < s.threads;
  const std::int64_t splits = apart ? plan.blocks : 1, parts = plan.chunks * splits, jobs = maps * parts;
  // A block that is used once is packed where it is used: many weights would leave the cache before.
  const bool once = apart && s.batch * plan.chunks == 1;
  const T *weights = once ? nullptr : pack(plan, s, w, parallel), *bias = pack_bias(plan, s, b);
  if ((!once && !weights) || !bias)
    return 1;
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    Map<T> map{};
    T *buffer = written_row.of<T>((SEGMENT + plan.phases[2].count) * MOST_VECTORS * lanes<T>);
    T *block = once ? packed_block.of<T>(window * MOST_VECTORS * lanes<T> + 1) : buffer;
    for (std::int64_t job = begin; job < end; ++job) {
      const std::int64_t n = job / parts / s.groups, group = job / parts % s.groups, which = job % parts / splits;
      const bool next = job == begin || job % splits == 0;
      if (!buffer || !block ||
          (next && !pack_chunk(plan, from + n * plan.from.batch + group * plan.from_group, which, map)))
        return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      const Range blocks = apart ? Range{job % splits, job % splits + 1} : Range{0, plan.blocks};
      const Range lane = plan.lanes_of(blocks.begin);
      if (once)
        pack_block(plan, w + group * s.out_channels * s.w.batch, lane, block);
      Chunk<S>{plan, map, once ? block : weights + group * all * window, bias + group * all, once ? lane.begin : 0,
               blocks, buffer, to + n * plan.to.batch + group * plan.to_group}.all(which);
    }
  };
  std::int64_t macs = window * plan.outputs; // of one job, roughly
  for (const Axis &axis : s.axes)
    macs *= axis.output;
  in_parallel(parallel, s.threads, jobs, MACS_PER_THREAD / larger(1, macs / larger(1, parts)), some);
  return failed;
}

} // namespace

template <class S>
int dense(const ConvShape &s, const void *x, const void *w, const void *b, const void *y, Parallel parallel) {
  if (s.pass == Pass::weight_gradient)
    return 2; // not served
  const auto in = [](const void *tensor) { return static_cast<const S *>(tensor); };
  const bool forward = s.pass == Pass::forward;
  return computed(s, in(forward ? x : y), in(w), in(b), const_cast<S *>(in(forward ? y : x)), parallel);
}

template int dense<float>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int dense<double>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int dense<bf16>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);

} // namespace reconv::RECONV_ISA
