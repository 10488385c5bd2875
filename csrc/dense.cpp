// Dense convolution in one to three dimensions, and its input gradient, which is the transposed convolution.
//
// Both are the same walk with other steps: csrc/phases.hpp. A chunk of the map is brought to channels-last with zeros
// beside its rows; kernel rows and planes outside of the map are left out. Lanes are the channels that are written:
// csrc/tile.hpp.
#include "phases.hpp"
#include "rows.hpp"
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t MACS_PER_THREAD = 200'000; // less is done before another thread has begun
constexpr std::int64_t CHUNK_BYTES = 512 * 1024;  // half of the second cache
constexpr std::int64_t SEGMENT = 128;             // positions of a row that wait to be written elsewhere

thread_local Scratch phase_table, tap_table, packed_weights, packed_chunk, written_row;

struct PhaseRow {
  const Phase *of;
  std::int64_t count;
};

// A call: `channels` are summed over, `outputs` are written, both of one group.
struct Plan {
  Axis axes[3];
  Strides from, to;
  std::int64_t channels, outputs, from_size[3], to_size[3];
  std::int64_t from_group, to_group; // from group to group
  PhaseRow phases[3];
  bool in_place;                     // the map is read where it is
  int cut;                           // the axis that is cut into chunks, by t
  std::int64_t chunk, chunks, threads;
  std::int64_t lane_count, vectors, blocks; // of outputs
  WeightLayout weights;
  bool relu;

  Range lanes_of(std::int64_t block) const {
    return {vectors * block / blocks * lane_count, vectors * (block + 1) / blocks * lane_count};
  }
  Range positions(int axis, std::int64_t which) const { // t of the chunk
    const std::int64_t longest = phases[axis].of[0].count;
    return axis == cut ? Range{which * chunk, smaller((which + 1) * chunk, longest)} : Range{0, longest};
  }
  Range read_by(int axis, std::int64_t which) const {
    Range all{0, 0};
    for (std::int64_t i = 0; i < phases[axis].count; ++i) {
      const Phase &phase = phases[axis].of[i];
      const Range t = positions(axis, which);
      all = joined(all, reads(phase, {t.begin, smaller(t.end, phase.count)}));
    }
    return axis == 2 ? all : inside(all, from_size[axis]);
  }
};

// Two neighbouring axes that a kernel of size 1 passes one by one are one axis, where the tensors allow it.
void merge(ConvShape &s, int a, int b) {
  const auto plain = [](const Axis &axis) {
    return axis.kernel == 1 && axis.stride == 1 && axis.before == 0 && axis.input == axis.output;
  };
  Axis &outer = s.axes[a], &inner = s.axes[b];
  const std::int64_t size = inner.input;
  const auto nested = [&](const Strides &t) {
    return outer.input == 1 || size == 1 || t.axis[a] == t.axis[b] * size;
  };
  if (!plain(outer) || !plain(inner) || !nested(s.x) || !nested(s.y))
    return;
  for (Strides *t : {&s.x, &s.y})
    if (size == 1)
      t->axis[b] = t->axis[a];
  inner.input = inner.output = outer.input * size;
  outer.input = outer.output = 1;
}

// Where each tap is read and where its packed weights come, phase after phase. Returns whether there was memory.
bool tabulate(Plan &plan, const ConvShape &s) {
  std::int64_t phases = 0, taps = 1;
  for (const Axis &axis : s.axes)
    phases += s.pass == Pass::forward ? 1 : axis.stride, taps *= axis.kernel;
  Phase *phase = phase_table.of<Phase>(phases);
  std::int64_t *from = tap_table.of<std::int64_t>(2 * taps), *to = from + taps;
  if (!phase || !from)
    return false;
  for (int a = 0; a < 3; ++a) {
    plan.phases[a] = {phase, s.pass == Pass::forward ? 1 : s.axes[a].stride};
    std::int64_t before = 0;
    for (std::int64_t i = 0; i < plan.phases[a].count; ++i, ++phase) {
      *phase = s.pass == Pass::forward ? forward_phase(s.axes[a]) : gradient_phase(s.axes[a], i);
      phase->taps_before = before;
      before += phase->taps;
    }
  }
  const auto each = [](PhaseRow row, auto &&body) { // (phase, tap of it, tap of the kernel)
    for (std::int64_t i = 0; i < row.count; ++i)
      for (std::int64_t j = 0; j < row.of[i].taps; ++j)
        body(row.of[i], j, row.of[i].first_tap + row.of[i].tap_step * j);
  };
  const std::int64_t high = s.axes[1].kernel, wide = s.axes[2].kernel;
  each(plan.phases[0], [&](const Phase &a, std::int64_t i, std::int64_t tap_a) {
    each(plan.phases[1], [&](const Phase &b, std::int64_t j, std::int64_t tap_b) {
      each(plan.phases[2], [&](const Phase &c, std::int64_t k, std::int64_t tap_c) {
        const std::int64_t tap = (tap_a * high + tap_b) * wide + tap_c;
        from[tap] = tap_a * s.w.axis[0] + tap_b * s.w.axis[1] + tap_c * s.w.axis[2];
        const std::int64_t before =
            a.taps_before * high * wide + a.taps * (b.taps_before * wide + b.taps * c.taps_before);
        to[tap] = plan.channels * (before + (i * b.taps + j) * c.taps + k);
      });
    });
  });
  plan.weights.from = from, plan.weights.to = to, plan.weights.taps = taps;
  return true;
}

// Chunks that fit the cache with what their windows reach beyond them, and enough of them for all threads.
void cut_into_chunks(Plan &plan, std::int64_t jobs, std::int64_t value_bytes) {
  const auto longest = [&](int axis) { return plan.phases[axis].of[0].count; };
  plan.cut = longest(0) > 1 ? 0 : longest(1) > 1 ? 1 : 2;
  plan.chunk = longest(plan.cut);
  std::int64_t slice = plan.channels * value_bytes; // bytes from t to t + 1
  for (int axis = 0; axis < 3; ++axis)
    slice *= axis == plan.cut ? plan.phases[axis].of[0].from_step : larger(1, plan.read_by(axis, 0).size());
  const Phase &phase = plan.phases[plan.cut].of[0];
  const std::int64_t beyond = divided_up(phase.reach * larger(phase.taps - 1, 0), phase.from_step);
  const std::int64_t fits = larger(CHUNK_BYTES / larger(1, slice) - beyond, larger(beyond, 1));
  const std::int64_t wanted = plan.threads > 1 ? divided_up(2 * plan.threads, larger(1, jobs)) : 1;
  plan.chunks = smaller(larger(divided_up(plan.chunk, fits), wanted), plan.chunk);
  plan.chunk = divided_up(plan.chunk, larger(1, plan.chunks));
  plan.chunks = plan.chunk ? divided_up(longest(plan.cut), plan.chunk) : 0;
}

template <class S> bool prepare(Plan &plan, const ConvShape &given) {
  using T = Computed<S>;
  ConvShape s = given;
  merge(s, 0, 1);
  merge(s, 1, 2);
  const bool forward = s.pass == Pass::forward;
  plan.from = forward ? s.x : s.y, plan.to = forward ? s.y : s.x;
  plan.channels = forward ? s.in_channels : s.out_channels;
  plan.outputs = forward ? s.out_channels : s.in_channels;
  plan.from_group = plan.channels * plan.from.channel, plan.to_group = plan.outputs * plan.to.channel;
  for (int a = 0; a < 3; ++a) {
    plan.axes[a] = s.axes[a];
    plan.from_size[a] = forward ? s.axes[a].input : s.axes[a].output;
    plan.to_size[a] = forward ? s.axes[a].output : s.axes[a].input;
  }
  plan.weights = {forward ? s.w.batch : s.w.channel, forward ? s.w.channel : s.w.batch, plan.channels, 0, {}, {}};
  plan.lane_count = lanes<T>, plan.vectors = divided_up(plan.outputs, lanes<T>);
  plan.threads = s.threads, plan.relu = s.relu != 0;
  if (!tabulate(plan, s))
    return false;
  plan.blocks = blocks_of(plan.vectors, plan.weights.taps * plan.channels * RECONV_VECTOR_BYTES);
  cut_into_chunks(plan, s.batch * s.groups, sizeof(T));
  plan.in_place = std::is_same_v<S, T> && (plan.channels == 1 || plan.from.channel == 1);
  for (std::int64_t chunk = 0; chunk < plan.chunks && plan.in_place; ++chunk) {
    const Range columns = plan.read_by(2, chunk);
    plan.in_place = columns.begin >= 0 && columns.end <= plan.from_size[2];
  }
  return true;
}

// A part of the map as the tile reads it; at[low[0], low[1], low[2], channel 0] is where `at` points.
template <class T> struct Map {
  const T *at;
  std::int64_t low[3], pitch[3];
};

template <class T> struct Packed {
  const T *weights, *bias;
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
  const std::int64_t c = plan.channels, wide = columns.size() * c, left = kept.begin - columns.begin;
  T *to = packed_chunk.of<T>(planes.size() * rows.size() * wide + 1);
  map = {to, {planes.begin, rows.begin, columns.begin}, {rows.size() * wide, wide, c}};
  if (!to)
    return false;
  for (std::int64_t plane = planes.begin; plane < planes.end; ++plane)
    for (std::int64_t row = rows.begin; row < rows.end; ++row, to += wide) {
      const S *at = from + plane * plan.from.axis[0] + row * plan.from.axis[1] + kept.begin * plan.from.axis[2];
      if (!kept.size()) {
        zeros(to, wide);
        continue;
      }
      zeros(to, left * c);
      read_row(at, plan.from.channel, plan.from.axis[2], c, kept.size(), to + left * c, c);
      zeros(to + (left + kept.size()) * c, wide - (left + kept.size()) * c);
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
  const T *weights, *bias; // of the group
  Range blocks;
  T *buffer;               // of one block of a segment of a row
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
    strip.weights = weights + lane.begin * plan.channels * plan.weights.taps + before * plan.channels * width +
                    at.planes.begin * strip.weight_plane + at.rows.begin * strip.weight_row;
    return strip;
  }

  // A segment of a row: the phases of the last axis one after the other.
  void segment(const Row &at, Range t, Range lane, S *y) const {
    const RunStrip<T> run = strip_of<T>(lane.size() / lanes<T>);
    const std::int64_t step = plan.phases[2].of[0].step, y_step = plan.to.axis[2], begin = step * t.begin;
    const std::int64_t left = smaller(lane.size(), plan.outputs - lane.begin);
    const bool direct = std::is_same_v<S, T> && (plan.to.channel == 1 || plan.outputs == 1);
    y += lane.begin * plan.to.channel + begin * y_step;
    for (std::int64_t i = 0; i < plan.phases[2].count; ++i) {
      const Phase &phase = plan.phases[2].of[i];
      const std::int64_t count = smaller(t.end, phase.count) - t.begin;
      if (count <= 0)
        continue;
      const T *x;
      Strip<T> strip = this->strip(at, phase, t.begin, lane, x);
      strip.left = direct ? left : lane.size();
      strip.y_step = step * (direct ? y_step : lane.size());
      if constexpr (std::is_same_v<S, T>)
        if (direct) {
          run(strip, x, y + phase.first * y_step, count);
          continue;
        }
      run(strip, x, buffer + phase.first * lane.size(), count);
    }
    if (!direct)
      write_row(buffer, lane.size(), left, smaller(step * t.end, plan.to_size[2]) - begin, y, plan.to.channel, y_step);
  }

  void row(const Row &at, Range t) const {
    const std::int64_t all = t.size(), parts = divided_up(all, larger(1, SEGMENT / plan.phases[2].of[0].step));
    S *y = to + (at.a.first + at.a.step * at.t0) * plan.to.axis[0] + (at.b.first + at.b.step * at.t1) * plan.to.axis[1];
    for (std::int64_t part = 0; part < parts; ++part)
      for (std::int64_t block = blocks.begin; block < blocks.end; ++block)
        segment(at, {t.begin + all * part / parts, t.begin + all * (part + 1) / parts}, plan.lanes_of(block), y);
  }

  void all(std::int64_t which) const {
    const Range t0 = plan.positions(0, which), t1 = plan.positions(1, which), t2 = plan.positions(2, which);
    for (std::int64_t i = 0; i < plan.phases[0].count; ++i)
      for (std::int64_t t = t0.begin; t < smaller(t0.end, plan.phases[0].of[i].count); ++t)
        for (std::int64_t j = 0; j < plan.phases[1].count; ++j)
          for (std::int64_t u = t1.begin; u < smaller(t1.end, plan.phases[1].of[j].count); ++u) {
            const Phase &a = plan.phases[0].of[i], &b = plan.phases[1].of[j];
            row({a, b, t, u, taps_inside(a, t, plan.from_size[0]), taps_inside(b, u, plan.from_size[1])}, t2);
          }
  }
};

// The weights of all blocks and the bias, both with lanes of zeros in the last block of each group.
template <class S>
Packed<Computed<S>> pack(const Plan &plan, const ConvShape &s, const S *w, const S *b, Parallel parallel) {
  using T = Computed<S>;
  const std::int64_t window = plan.weights.taps * plan.channels, all = plan.vectors * lanes<T>;
  T *weights = packed_weights.of<T>(s.groups * all * (window + 1)), *bias = weights + s.groups * all * window;
  if (!weights)
    return {};
  zeros(bias, s.groups * all);
  for (std::int64_t group = 0; group < s.groups && b; ++group)
    converted(b + group * plan.outputs, plan.outputs, bias + group * all);
  in_parallel(parallel, s.threads, s.groups * plan.blocks, MACS_PER_THREAD / larger(1, window * 32),
              [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t job = begin; job < end; ++job) {
                  const std::int64_t group = job / plan.blocks;
                  const Range lane = plan.lanes_of(job % plan.blocks);
                  const S *from = w + group * s.out_channels * s.w.batch + lane.begin * plan.weights.lane_step;
                  pack_weights(plan.weights, from, smaller(lane.size(), plan.outputs - lane.begin), lane.size(),
                               weights + (group * all + lane.begin) * window);
                }
              });
  return {weights, bias};
}

template <class S>
int computed(const ConvShape &s, const S *from, const S *w, const S *b, S *to, Parallel parallel) {
  using T = Computed<S>;
  Plan plan{};
  if (!prepare<S>(plan, s))
    return 1;
  const Packed<T> packed = pack(plan, s, w, b, parallel);
  if (!packed.weights)
    return 1;
  const std::int64_t window = plan.weights.taps * plan.channels, all = plan.vectors * lanes<T>;
  // Small weights stay in the cache: then what lies side by side in the output is written together.
  const std::int64_t maps = s.batch * s.groups;
  const bool apart = all * window * std::int64_t{sizeof(T)} > CHUNK_BYTES / 2 || maps * plan.chunks < s.threads;
  const std::int64_t splits = apart ? plan.blocks : 1, parts = plan.chunks * splits, jobs = maps * parts;
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    Map<T> map{};
    T *buffer = written_row.of<T>((SEGMENT + plan.phases[2].count) * MOST_VECTORS * lanes<T>);
    for (std::int64_t job = begin; job < end; ++job) {
      const std::int64_t n = job / parts / s.groups, group = job / parts % s.groups, which = job % parts / splits;
      if (!buffer || ((job == begin || job % splits == 0) &&
                      !pack_chunk(plan, from + n * plan.from.batch + group * plan.from_group, which, map)))
        return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      const Range blocks = apart ? Range{job % splits, job % splits + 1} : Range{0, plan.blocks};
      Chunk<S>{plan, map, packed.weights + group * all * window, packed.bias + group * all, blocks, buffer,
               to + n * plan.to.batch + group * plan.to_group}.all(which);
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
