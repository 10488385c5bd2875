// The weight gradient of a depthwise convolution: lanes are channels, and a few taps of a kernel row stay in registers
// while the rows of a strip stream by.
#include "depthwise_pack.hpp"

namespace reconv::RECONV_ISA::channelwise {
namespace {

constexpr int MOST_TAPS = RECONV_REGISTERS == 32 ? 8 : 5; // in registers together
constexpr int AT_ONCE = 4;                                // positions whose y is in registers
constexpr std::int64_t ROWS_BYTES = 20 * 1024;            // of x and y that pass by each kernel row while in L1

// Of so many taps, how often each has an accumulator: additions must not wait for each other.
constexpr int copies(int taps) {
  return RECONV_REGISTERS == 16 ? 2 : taps <= 2 ? 4 : taps <= 4 ? 3 : taps <= 7 ? 2 : 1;
}

constexpr std::int64_t SUMS_BYTES = 128 * 1024;           // of blocks of channels that share a pass over the maps

thread_local Scratch x_memory, y_memory, sums_memory, runs_memory;

// Rows of positions, and what they meet at the first of some taps. Steps are in elements.
struct Stream {
  std::int64_t rows, positions;
  std::int64_t x_row, x_position, x_tap, y_row, y_position;
};

// sums[tap] += Σ y[position] · x[S·position + tap]; S = 0: steps of any size.
template <class T, int K, int S> void stream(const Stream &s, const T *x, const T *y, T *sums) {
  constexpr int L = lanes<T>, C = copies(K);
  Vector<T> acc[C][K] = {};
  unrolled<K>([&](auto t) { acc[0][t] = load(sums + t * L); });

  const auto some = [&](auto count, const T *x, const T *y) __attribute__((always_inline)) {
    constexpr int P = count;
    Vector<T> value[P];
    unrolled<P>([&](auto p) { value[p] = load(y + p * s.y_position); });
    if constexpr (S > 0)
      unrolled<S *(P - 1) + K>([&](auto j) __attribute__((always_inline)) {
        Vector<T> met = load(x + j % 4 * s.x_tap);
        in_register(met);
        unrolled<K>([&](auto t) __attribute__((always_inline)) {
          if constexpr (meets<P, S>(j - t))
            acc[(j - t) / S % C][t] += met * value[(j - t) / S];
        });
        if constexpr (j % 4 == 3) {
          x += 4 * s.x_tap;
          in_register(x);
        }
      });
    else
      unrolled<P>([&](auto p) __attribute__((always_inline)) {
        unrolled<K>([&](auto t) __attribute__((always_inline)) {
          acc[p % C][t] += value[p] * load(x + p * s.x_position + t * s.x_tap);
        });
      });
  };

  for (std::int64_t row = 0; row < s.rows; ++row, x += s.x_row, y += s.y_row) {
    std::int64_t at = 0;
    for (; at + AT_ONCE <= s.positions; at += AT_ONCE)
      some(std::integral_constant<int, AT_ONCE>{}, x + at * s.x_position, y + at * s.y_position);
    if (at + 2 <= s.positions) {
      some(std::integral_constant<int, 2>{}, x + at * s.x_position, y + at * s.y_position);
      at += 2;
    }
    if (at < s.positions)
      some(std::integral_constant<int, 1>{}, x + at * s.x_position, y + at * s.y_position);
  }
  unrolled<K>([&](auto t) {
    unrolled<C - 1>([&](auto c) { acc[0][t] += acc[c + 1][t]; });
    store(sums + t * L, acc[0][t]);
  });
}

template <class T> using Streamed = void (*)(const Stream &, const T *, const T *, T *);
template <class T> struct Streams {
  Streamed<T> of[MOST_TAPS][3]; // taps − 1, S
};
template <class T, int... I> constexpr Streams<T> streams_of(std::integer_sequence<int, I...>) {
  return {{{&stream<T, I + 1, 0>, &stream<T, I + 1, 1>, &stream<T, I + 1, 2>}...}};
}

// One block of channels of one strip: x, with zeros around its rows, and y, both packed.
template <class T> struct Strip {
  Range in[3], out[3];
  const Run *runs; // of columns
  const T *x, *y;
  std::int64_t x_step[3], y_step[3];
};

// Adds one plane of what is written to the sums of some kernel rows.
template <class T>
void add_plane(const Walk (&walks)[3], const Strip<T> &strip, std::int64_t z, Range kernel_rows, T *sums) {
  static constexpr auto streams = streams_of<T>(std::make_integer_sequence<int, MOST_TAPS>{});
  constexpr int L = lanes<T>;
  const Walk &planes = walks[0], &rows = walks[1], &columns = walks[2];
  const std::int64_t row_bytes = (strip.in[2].size() * rows.stride + strip.out[2].size()) * L * sizeof(T);
  const std::int64_t high = larger(1, ROWS_BYTES / row_bytes), stride = rows.stride;
  for (std::int64_t top = strip.out[1].first; top < strip.out[1].last; top += high)
    for (std::int64_t kernel_row = kernel_rows.first; kernel_row < kernel_rows.last; ++kernel_row) {
      const std::int64_t kz = planes.kernel == 1 ? 0 : kernel_row / rows.kernel, ky = kernel_row - kz * rows.kernel;
      const std::int64_t plane = planes.stride * z + planes.dilation * kz - planes.before;
      if (plane < 0 || plane >= planes.read)
        continue;
      const std::int64_t offset = rows.dilation * ky - rows.before; // of x from stride · y
      const std::int64_t first = larger(top, offset < 0 ? rounded_up(-offset, stride) : 0);
      const std::int64_t last = smaller(smaller(top + high, strip.out[1].last),
                                        offset < rows.read ? rounded_up(rows.read - offset, stride) : 0);
      if (first >= last)
        continue;
      const T *from = strip.x + (plane - strip.in[0].first) * strip.x_step[0] +
                      (stride * first + offset - strip.in[1].first) * strip.x_step[1];
      const T *by = strip.y + (z - strip.out[0].first) * strip.y_step[0] +
                    (first - strip.out[1].first) * strip.y_step[1];
      for (const Run *run = strip.runs; run < strip.runs + columns.runs(); ++run) {
        const int apart = run->in_step == run->in_tap ? 1 : run->in_step == 2 * run->in_tap ? 2 : 0;
        const Stream stream{last - first, run->positions, stride * strip.x_step[1], run->in_step * L, run->in_tap * L,
                            strip.y_step[1], run->out_step * L};
        const T *x = from + (run->in_first - strip.in[2].first) * L;
        const T *y = by + (run->out_first - strip.out[2].first) * L;
        T *sum = sums + (kernel_row - kernel_rows.first) * run->taps * L;
        for (std::int64_t left = run->taps; left > 0;) {
          const std::int64_t some = left <= MOST_TAPS ? left : divided_up(left, divided_up(left, MOST_TAPS));
          streams.of[some - 1][apart](stream, x, y, sum);
          left -= some, x += some * stream.x_tap, sum += some * L;
        }
      }
    }
}

// The gradient of some kernel rows of some blocks of channels.
template <class S> struct Gradient {
  using T = Computed<S>;
  static constexpr int L = lanes<T>;
  const ConvShape &s;
  const S *x, *y;
  S *w;
  Walk walks[3];
  Strips strips;
  std::int64_t channels, parts, high; // of the kernel's rows, and how many rows a part has

  Range rows(std::int64_t job) const {
    const std::int64_t top = job % parts * high, all = walks[0].kernel * walks[1].kernel;
    return {smaller(top, all), smaller(top + high, all)};
  }

  // One part of the maps; false where memory ran out.
  bool add(std::int64_t n, std::int64_t part, std::int64_t begin, std::int64_t end, T *sums) const {
    Strip<T> strip;
    strips.ranges(walks, part, strip.in, strip.out);
    strip.x_step[2] = strip.y_step[2] = L;
    for (int axis = 2; axis > 0; --axis) {
      strip.x_step[axis - 1] = strip.x_step[axis] * strip.in[axis].size();
      strip.y_step[axis - 1] = strip.y_step[axis] * strip.out[axis].size();
    }
    T *x_packed = x_memory.of<T>(larger(1, strip.in[0].size() * strip.x_step[0]));
    T *y_packed = y_memory.of<T>(strip.out[0].size() * strip.y_step[0]);
    Run *runs = runs_memory.of<Run>(walks[2].runs());
    if (!x_packed || !y_packed || !runs)
      return false;
    for (std::int64_t i = 0; i < walks[2].runs(); ++i)
      runs[i] = walks[2].run(i, strip.out[2]);
    strip.x = x_packed, strip.y = y_packed, strip.runs = runs;
    for (std::int64_t job = begin; job < end; ++job, sums += high * walks[2].kernel * L) {
      const std::int64_t first = job / parts * L;
      if (job == begin || job % parts == 0) {
        Block<S> source(first, channels, s.x.channel, s.out_channels), target(first, channels, s.y.channel, 1);
        source.ahead = target.ahead = job + parts < end;
        pack_map(x + n * s.x.batch, s.x.axis, walks[2].read, strip.in, source, x_packed);
        pack_map(y + n * s.y.batch, s.y.axis, walks[2].written, strip.out, target, y_packed);
      }
      for (std::int64_t z = strip.out[0].first; z < strip.out[0].last; ++z)
        add_plane(walks, strip, z, rows(job), sums);
    }
    return true;
  }

  void write(std::int64_t job, const T *sums) const {
    const Block<S> block(job / parts * L, channels, s.w.batch, 1);
    const std::int64_t columns = walks[2].kernel, kernel_rows = walks[1].kernel;
    const Range range = rows(job);
    for (std::int64_t row = range.first; row < range.last; ++row, sums += columns * L)
      unpack_row(sums, s.w.axis[2], block, columns,
                 w + row / kernel_rows * s.w.axis[0] + row % kernel_rows * s.w.axis[1]);
  }

  // So many jobs share a pass over the maps as keeps their sums in the cache.
  bool run(std::int64_t begin, std::int64_t end) const {
    const std::int64_t size = high * walks[2].kernel * L, together = larger(1, SUMS_BYTES / (size * sizeof(T)));
    const bool empty = walks[0].written * walks[1].written * walks[2].written == 0;
    for (std::int64_t last; begin < end; begin = last) {
      last = smaller(end, begin + together);
      T *sums = sums_memory.of<T>((last - begin) * size);
      if (!sums)
        return false;
      zeros(sums, (last - begin) * size);
      for (std::int64_t n = 0; n < s.batch && !empty; ++n)
        for (std::int64_t part = 0; part < strips.count; ++part)
          if (!add(n, part, begin, last, sums))
            return false;
      for (std::int64_t job = begin; job < last; ++job)
        write(job, sums + (job - begin) * size);
    }
    return true;
  }
};

} // namespace

template <class S>
int weight_gradient(const ConvShape &s, const S *x, const S *y, S *w, Parallel parallel) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  const std::int64_t channels = s.groups * s.out_channels, blocks = divided_up(channels, L);
  if (channels == 0)
    return 0;
  const std::int64_t kernel_rows = s.axes[0].kernel * s.axes[1].kernel;
  // Where there are fewer blocks than threads, each computes some kernel rows.
  const std::int64_t parts = smaller(kernel_rows, divided_up(s.threads, blocks)), high = divided_up(kernel_rows, parts);
  const Walk walks[3] = {{s.axes[0], s.pass}, {s.axes[1], s.pass}, {s.axes[2], s.pass}};
  const Gradient<S> gradient{s, x, y, w, {walks[0], walks[1], walks[2]}, Strips(walks, sizeof(T) * L, 1, 1),
                             channels, parts, high};
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    if (!gradient.run(begin, end))
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  };
  const std::int64_t positions = s.batch * walks[0].written * walks[1].written * walks[2].written;
  const std::int64_t macs = positions * high * walks[2].kernel * L;
  parallel(static_cast<int>(s.threads), blocks * parts, larger(1, MACS_PER_THREAD / larger(1, macs)),
           &called<decltype(some)>, &some);
  return failed;
}

template int weight_gradient<float>(const ConvShape &, const float *, const float *, float *, Parallel);
template int weight_gradient<double>(const ConvShape &, const double *, const double *, double *, Parallel);
template int weight_gradient<bf16>(const ConvShape &, const bf16 *, const bf16 *, bf16 *, Parallel);

} // namespace reconv::RECONV_ISA::channelwise
