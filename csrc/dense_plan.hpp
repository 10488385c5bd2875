// What a dense convolution, or its input gradient, reads and writes, and how it is cut into chunks and blocks.
#pragma once

#include "phases.hpp"
#include "rows.hpp"
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t CHUNK_BYTES = 512 * 1024;  // half of the second cache
constexpr std::int64_t SAME_LINES = 2048;         // bytes: steps of so many meet two sets of lines, or one
constexpr std::int64_t SEGMENT = 256;             // positions of a row that wait to be written elsewhere

thread_local Scratch phase_table, tap_table;

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
  bool in_place, direct;             // the map is read, the target written, where it is
  bool heavy;                        // the weights do not stay in the cache: blocks of them are outermost
  std::int64_t together;             // rows that are computed before they are written elsewhere
  std::int64_t pitch;                // from position to position of a packed row
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
  plan.heavy = plan.vectors * RECONV_VECTOR_BYTES * plan.weights.taps * plan.channels > CHUNK_BYTES / 2;
  cut_into_chunks(plan, s.batch * s.groups * (plan.heavy ? plan.blocks : 1), sizeof(T));
  plan.direct = std::is_same_v<S, T> && (plan.to.channel == 1 || plan.outputs == 1);
  const bool one_run = plan.phases[1].count == 1 && plan.to.axis[1] == plan.to_size[2] * plan.to.axis[2];
  plan.together = plan.direct || !one_run ? 1 : larger(1, SEGMENT / larger(1, plan.to_size[2]));
  // Neighbouring positions that all lie in the same lines of the first cache would push each other out of it.
  const std::int64_t set = SAME_LINES / sizeof(T), step = plan.phases[2].of[0].from_step;
  plan.pitch = plan.channels + (step * plan.channels % set == 0 ? lanes<T> : 0);
  const bool apart = plan.to_size[2] == 1 || step * plan.from.axis[2] % set != 0;
  plan.in_place = apart && std::is_same_v<S, T> && (plan.channels == 1 || plan.from.channel == 1);
  for (std::int64_t chunk = 0; chunk < plan.chunks && plan.in_place; ++chunk) {
    const Range columns = plan.read_by(2, chunk);
    plan.in_place = columns.begin >= 0 && columns.end <= plan.from_size[2];
  }
  return true;
}

} // namespace
} // namespace reconv::RECONV_ISA
