// Depthwise, then pointwise: while it is in the first cache, a piece of a row of the one is multiplied by the other.
//
// The rows of the map that the window meets are kept channels-last in a ring, with zeros beside them.
#include "separable.hpp"

#include "rows.hpp"
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t MACS_PER_THREAD = 200'000;  // less is done before another thread has begun
constexpr std::int64_t SEGMENT_BYTES = 16 * 1024;  // half of the first cache
constexpr int LONGEST = RECONV_REGISTERS == 32 ? 14 : 8; // positions of a tile of the depthwise part

thread_local Scratch packed_weights, row_ring, between, written_row;

template <class T> struct Work {
  const T *depthwise, *depthwise_bias, *pointwise, *bias; // packed: [tap][channel], [channel], blocks, [lane]
  std::int64_t pitch;                                     // channels, in whole vectors
  std::int64_t vectors, blocks, segment;

  std::int64_t first_lane(std::int64_t block) const { return vectors * block / blocks * lanes<T>; }
};

// The taps of an output row inside of the map, and the ring that has their rows.
template <class T> struct Taps {
  const T *ring;
  std::int64_t slots, row_size, first_row, row_step; // the first tap's row of the map
  std::int64_t begin, end;                           // kernel rows
};

// P neighbouring positions of the depthwise part, a vector of channels at a time.
template <class T, int P>
void depthwise_tile(const Axis &axis, const Taps<T> &taps, const Work<T> &work, bool relu, std::int64_t at, T *to) {
  constexpr int L = lanes<T>;
  const std::int64_t pitch = work.pitch, step = axis.stride * pitch, column_step = axis.dilation * pitch;
  for (std::int64_t c = 0; c < pitch; c += L) {
    Vector<T> acc[P];
    const Vector<T> bias = load(work.depthwise_bias + c);
    RECONV_UNROLLED
    for (int p = 0; p < P; ++p)
      acc[p] = bias;
    const T *w = work.depthwise + taps.begin * axis.kernel * pitch + c;
    for (std::int64_t row = taps.begin; row < taps.end; ++row) {
      const T *x = taps.ring + (taps.first_row + taps.row_step * row) % taps.slots * taps.row_size + at * step + c;
      for (std::int64_t column = 0; column < axis.kernel; ++column, w += pitch, x += column_step) {
        const Vector<T> weight = load(w);
        RECONV_UNROLLED
        for (int p = 0; p < P; ++p)
          acc[p] += weight * load(x + p * step);
      }
    }
    if (relu) {
      RECONV_UNROLLED
      for (int p = 0; p < P; ++p)
        acc[p] = acc[p] < 0 ? Vector<T>{} : acc[p];
    }
    RECONV_UNROLLED
    for (int p = 0; p < P; ++p)
      store(to + p * pitch + c, acc[p]);
  }
}

template <class T>
using DepthwiseTile = void (*)(const Axis &, const Taps<T> &, const Work<T> &, bool, std::int64_t, T *);

template <class T> struct Tiles {
  DepthwiseTile<T> of[LONGEST];
};

template <class T, int... P> constexpr Tiles<T> tiles_of(std::integer_sequence<int, P...>) {
  return {{&depthwise_tile<T, P + 1>...}}; // by P − 1
}

// Positions begin … end of a row of the depthwise part, in tiles of nearly equal length.
template <class T>
void depthwise_row(const Axis &axis, const Taps<T> &taps, const Work<T> &work, bool relu, std::int64_t begin,
                   std::int64_t end, T *to) {
  static constexpr Tiles<T> tiles = tiles_of<T>(std::make_integer_sequence<int, LONGEST>{});
  std::int64_t parts = divided_up(end - begin, LONGEST);
  for (std::int64_t at = begin; at < end; --parts) {
    const std::int64_t p = divided_up(end - at, parts);
    tiles.of[p - 1](axis, taps, work, relu, at, to + (at - begin) * work.pitch);
    at += p;
  }
}

template <class S>
bool prepare(const SeparableShape &s, const S *w, const S *a, const S *v, const S *b, Work<Computed<S>> &work) {
  using T = Computed<S>;
  const ConvShape &d = s.depthwise;
  const std::int64_t channels = d.groups, pitch = divided_up(channels, lanes<T>) * lanes<T>;
  const std::int64_t high = d.axes[1].kernel, wide = d.axes[2].kernel;
  work.pitch = pitch, work.vectors = divided_up(s.out_channels, lanes<T>);
  work.blocks = blocks_of(work.vectors, channels * RECONV_VECTOR_BYTES);
  work.segment = larger(SEGMENT_BYTES / static_cast<std::int64_t>(pitch * sizeof(T)) / 14, 1) * 14;
  const std::int64_t all = work.vectors * lanes<T>, taken = (high * wide + 1) * pitch;
  T *to = packed_weights.of<T>(taken + all * (channels + 1));
  if (!to)
    return false;
  work.depthwise = to, work.depthwise_bias = to + high * wide * pitch, work.pointwise = to + taken;
  work.bias = work.pointwise + all * channels;
  T *bias = to + taken + all * channels, *pointwise = to + taken;
  zeros(to, taken), zeros(bias, all);
  for (std::int64_t tap = 0; tap < high * wide; ++tap)
    read_row(w + tap / wide * d.w.axis[1] + tap % wide * d.w.axis[2], 1, d.w.batch, 1, channels, to + tap * pitch, 1);
  if (a)
    converted(a, channels, to + high * wide * pitch);
  if (b)
    converted(b, s.out_channels, bias);
  const std::int64_t first = 0;
  const WeightLayout layout{s.v_out, s.v_in, channels, 1, &first, &first};
  for (std::int64_t block = 0; block < work.blocks; ++block) {
    const std::int64_t lane = work.first_lane(block), width = work.first_lane(block + 1) - lane;
    pack_weights(layout, v + lane * s.v_out, smaller(width, s.out_channels - lane), width, pointwise + lane * channels);
  }
  return true;
}

// The pointwise part of some positions, and their way to y.
template <class S>
void pointwise(const SeparableShape &s, const Work<Computed<S>> &work, const Computed<S> *m, std::int64_t count,
               Computed<S> *buffer, S *y) {
  using T = Computed<S>;
  const Strides &to = s.depthwise.y;
  for (std::int64_t block = 0; block < work.blocks; ++block) {
    const std::int64_t lane = work.first_lane(block), width = work.first_lane(block + 1) - lane;
    const std::int64_t left = smaller(width, s.out_channels - lane);
    const RunStrip<T> run = strip_of<T>(width / lanes<T>);
    Strip<T> strip{};
    strip.weights = work.pointwise + lane * s.depthwise.groups, strip.bias = work.bias + lane;
    strip.planes = strip.rows = strip.columns = 1, strip.run = s.depthwise.groups, strip.value = width;
    strip.x_step = work.pitch, strip.relu = s.depthwise.relu != 0;
    if constexpr (std::is_same_v<S, T>)
      if (to.channel == 1 || s.out_channels == 1) {
        strip.y_step = to.axis[2], strip.left = left;
        run(strip, m, y + lane * to.channel, count);
        continue;
      }
    strip.y_step = strip.left = width;
    run(strip, m, buffer, count);
    write_row(buffer, width, left, count, y + lane * to.channel, to.channel, to.axis[2]);
  }
}

template <class S>
bool rows(const SeparableShape &s, const Work<Computed<S>> &work, const S *x, S *y, std::int64_t begin,
          std::int64_t end) {
  using T = Computed<S>;
  const ConvShape &d = s.depthwise;
  const Axis &high = d.axes[1], &wide = d.axes[2];
  const std::int64_t slots = (high.kernel - 1) * high.dilation + 1;
  const std::int64_t columns = (wide.output - 1) * wide.stride + (wide.kernel - 1) * wide.dilation + 1;
  const std::int64_t kept = smaller(columns - smaller(wide.before, columns), wide.input);
  const std::int64_t row_size = columns * work.pitch;
  T *ring = row_ring.of<T>(slots * row_size), *m = between.of<T>(work.segment * work.pitch);
  T *buffer = written_row.of<T>(work.segment * MOST_VECTORS * lanes<T>);
  if (!ring || !m || !buffer)
    return false;
  zeros(ring, slots * row_size);
  for (std::int64_t job = begin, next = 0; job < end; ++job) { // rows of the map before `next` are in the ring
    const std::int64_t n = job / high.output, row = job % high.output, top = high.stride * row - high.before;
    if (job == begin || row == 0)
      next = 0;
    for (next = larger(next, top); next < smaller(top + slots, high.input); ++next)
      read_row(x + n * d.x.batch + next * d.x.axis[1], d.x.channel, d.x.axis[2], d.groups, kept,
               ring + next % slots * row_size + wide.before * work.pitch, work.pitch);
    Taps<T> taps{ring, slots, row_size, top, high.dilation, 0, high.kernel};
    while (taps.begin < taps.end && top + high.dilation * taps.begin < 0)
      ++taps.begin;
    while (taps.begin < taps.end && top + high.dilation * (taps.end - 1) >= high.input)
      --taps.end;
    const std::int64_t parts = divided_up(wide.output, work.segment);
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t from = wide.output * part / parts, to = wide.output * (part + 1) / parts;
      depthwise_row(wide, taps, work, s.relu_between != 0, from, to, m);
      pointwise(s, work, m, to - from, buffer, y + n * d.y.batch + row * d.y.axis[1] + from * d.y.axis[2]);
    }
  }
  return true;
}

} // namespace

template <class S> int separable(const SeparableShape &s, const void *const *tensors, Parallel parallel) {
  const auto in = [&](int i) { return static_cast<const S *>(tensors[i]); };
  Work<Computed<S>> work;
  if (!prepare(s, in(1), in(2), in(3), in(4), work))
    return 1;
  const Axis &high = s.depthwise.axes[1], &wide = s.depthwise.axes[2];
  const std::int64_t macs = wide.output * s.depthwise.groups * (high.kernel * wide.kernel + s.out_channels); // of a row
  int failed = 0;
  in_parallel(parallel, s.depthwise.threads, s.depthwise.batch * high.output, MACS_PER_THREAD / larger(1, macs),
              [&](std::int64_t begin, std::int64_t end) {
                if (!rows(s, work, in(0), const_cast<S *>(in(5)), begin, end))
                  __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
              });
  return failed;
}

template int separable<float>(const SeparableShape &, const void *const *, Parallel);
template int separable<double>(const SeparableShape &, const void *const *, Parallel);
template int separable<bf16>(const SeparableShape &, const void *const *, Parallel);

} // namespace reconv::RECONV_ISA
