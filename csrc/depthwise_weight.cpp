// The weight gradient of a depthwise convolution: lanes are channels, and a few taps of a kernel row stay in registers
// while the rows of a strip stream by.
#include "depthwise_pack.hpp"

namespace reconv::RECONV_ISA::channelwise {
namespace {

constexpr int MOST_TAPS = RECONV_REGISTERS == 32 ? 5 : 3, MOST_ROWS = 3; // of a kernel, in registers together
constexpr int AT_ONCE = 4;                                // positions whose y is in registers
constexpr std::int64_t ROWS_BYTES = 20 * 1024;            // of x and y that pass by each kernel row while in L1
constexpr std::int64_t SUMS_BYTES = 128 * 1024;           // of blocks of channels that share a pass over the maps

// Of so many taps, how often each has an accumulator: additions must not wait for each other.
constexpr int copies(int taps) {
  if (RECONV_REGISTERS == 16)
    return taps == 1 ? 4 : taps <= 3 ? 3 : taps == 4 ? 2 : 1;
  return taps <= 2 ? 4 : taps <= 4 ? 3 : taps <= 7 ? 2 : 1;
}

thread_local Scratch x_memory, y_memory, sums_memory, runs_memory;

// Rows of positions, and what they meet at the first of some taps. Steps are in elements.
struct Stream {
  std::int64_t rows, positions;
  std::int64_t x_row, x_position, x_tap, x_kernel_row, y_row, y_position, sums_row;
};

// sums[kernel row][tap] += Σ y[position] · x[S·position + tap]; S = 0: steps of any size.
template <class T, int R, int K, int S> void stream(const Stream &s, const T *x, const T *y, T *sums) {
  constexpr int L = lanes<T>, C = copies(R * K);
  Vector<T> acc[C][R][K] = {};
  unrolled<R>([&](auto r) { unrolled<K>([&](auto t) { acc[0][r][t] = load(sums + r * s.sums_row + t * L); }); });

  std::int64_t x_one = s.x_tap, x_three = 3 * x_one, y_one = s.y_position, y_three = 3 * y_one;
  in_register(x_one), in_register(x_three), in_register(y_one), in_register(y_three);
  const auto some = [&](auto count, const T *x, const T *y) __attribute__((always_inline)) {
    constexpr int P = count;
    Vector<T> value[P];
    unrolled<P>([&](auto p) { value[p] = load(y + (p == 3 ? y_three : p * y_one)); });
    const T *from[R];
    unrolled<R>([&](auto r) { from[r] = x + r * s.x_kernel_row; });
    if constexpr (S > 0)
      unrolled<S *(P - 1) + K>([&](auto j) __attribute__((always_inline)) {
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
          Vector<T> met = load(from[r] + (j % 4 == 3 ? x_three : j % 4 * x_one));
          in_register(met);
          unrolled<K>([&](auto t) __attribute__((always_inline)) {
            if constexpr (meets<P, S>(j - t))
              acc[(j - t) / S % C][r][t] += met * value[(j - t) / S];
          });
          if constexpr (j % 4 == 3) {
            from[r] += 4 * x_one;
            in_register(from[r]);
          }
        });
      });
    else
      unrolled<P>([&](auto p) __attribute__((always_inline)) {
        unrolled<K>([&](auto t) __attribute__((always_inline)) {
          acc[p % C][0][t] += value[p] * load(x + (t == 3 ? x_three : t % 4 * x_one) + t / 4 * 4 * x_one);
        });
        x += s.x_position;
      });
  };

  for (std::int64_t row = 0; row < s.rows; ++row, x += s.x_row, y += s.y_row) {
    const T *from = x, *by = y;
    std::int64_t left = s.positions;
    for (; left >= AT_ONCE; left -= AT_ONCE, from += AT_ONCE * s.x_position, by += AT_ONCE * y_one)
      some(std::integral_constant<int, AT_ONCE>{}, from, by);
    for (; left > 0; --left, from += s.x_position, by += y_one)
      some(std::integral_constant<int, 1>{}, from, by);
  }
  unrolled<R>([&](auto r) {
    unrolled<K>([&](auto t) {
      unrolled<C - 1>([&](auto c) { acc[0][r][t] += acc[c + 1][r][t]; });
      store(sums + r * s.sums_row + t * L, acc[0][r][t]);
    });
  });
}

template <class T> using Streamed = void (*)(const Stream &, const T *, const T *, T *);
template <class T> struct Streams {
  Streamed<T> of[MOST_TAPS][MOST_ROWS][3]; // taps − 1, kernel rows − 1, S
};
template <class T, int... I> constexpr Streams<T> streams_of(std::integer_sequence<int, I...>) {
  return {{{{&stream<T, 1, I + 1, 0>, &stream<T, 1, I + 1, 1>, &stream<T, 1, I + 1, 2>},
            {nullptr, &stream<T, 2, I + 1, 1>, &stream<T, 2, I + 1, 2>},
            {nullptr, &stream<T, 3, I + 1, 1>, &stream<T, 3, I + 1, 2>}}...}};
}

// Whether few of the rows that meet a kernel row are beyond the map.
inline bool few_beyond(const Walk &down) {
  std::int64_t inside = 0;
  for (std::int64_t ky = 0; ky < down.kernel; ++ky) {
    const std::int64_t offset = down.dilation * ky - down.before;
    const std::int64_t first = offset < 0 ? rounded_up(-offset, down.stride) : 0;
    const std::int64_t last = smaller(down.written, offset < down.read ? rounded_up(down.read - offset, down.stride) : 0);
    inside += larger(0, last - first);
  }
  return 4 * inside >= 3 * down.kernel * down.written;
}

// One block of channels of one strip: x, with zeros around its rows, and y, both packed.
template <class T> struct Strip {
  Range in[3], out[3];
  const Run *runs; // of columns
  const T *x, *y;
  std::int64_t x_step[3], y_step[3];
};

// Adds some rows of one plane of what is written to the sums of neighbouring kernel rows, all of which meet them.
template <class T>
void add_rows(const Walk (&walks)[3], const Strip<T> &strip, std::int64_t z, Range rows, std::int64_t plane,
              Range kernel_rows, T *sums) {
  static constexpr auto streams = streams_of<T>(std::make_integer_sequence<int, MOST_TAPS>{});
  constexpr int L = lanes<T>;
  const Walk &down = walks[1], &across = walks[2];
  const T *from = strip.x + (plane - strip.in[0].first) * strip.x_step[0] +
                  (down.stride * rows.first + down.dilation * kernel_rows.first - down.before - strip.in[1].first) *
                      strip.x_step[1];
  const T *by = strip.y + (z - strip.out[0].first) * strip.y_step[0] +
                (rows.first - strip.out[1].first) * strip.y_step[1];
  for (const Run *run = strip.runs; run < strip.runs + across.runs(); ++run) {
    const int apart = run->in_step == run->in_tap ? 1 : run->in_step == 2 * run->in_tap ? 2 : 0;
    const Stream stream{rows.size(), run->positions, down.stride * strip.x_step[1], run->in_step * L,
                        run->in_tap * L, down.dilation * strip.x_step[1], strip.y_step[1], run->out_step * L,
                        run->taps * L};
    const std::int64_t together = apart ? kernel_rows.size() : 1;
    for (std::int64_t row = 0; row < kernel_rows.size(); row += together) {
      const T *x = from + row * stream.x_kernel_row + (run->in_first - strip.in[2].first) * L;
      const T *y = by + (run->out_first - strip.out[2].first) * L;
      T *sum = sums + row * stream.sums_row;
      for (std::int64_t left = run->taps; left > 0;) {
        const std::int64_t some = left <= MOST_TAPS ? left : divided_up(left, divided_up(left, MOST_TAPS));
        streams.of[some - 1][together - 1][apart](stream, x, y, sum);
        left -= some, x += some * stream.x_tap, sum += some * L;
      }
    }
  }
}

// The kernel's rows, in bands that are in registers together; those of all planes are counted on.
struct Bands {
  std::int64_t rows, each; // of a plane: rows, bands
  Bands(const Walk &down) : rows(down.kernel), each(divided_up(down.kernel, MOST_ROWS)) {}
  std::int64_t row(std::int64_t band) const { return band / each * rows + band % each * rows / each; } // of all planes
};

// Adds one plane of what is written to the sums of some bands.
template <class T>
void add_plane(const Walk (&walks)[3], const Strip<T> &strip, std::int64_t z, const Bands &bands, Range some,
               T *sums) {
  constexpr int L = lanes<T>;
  const Walk &planes = walks[0], &down = walks[1], &across = walks[2];
  const std::int64_t row_bytes = (strip.in[2].size() * down.stride + strip.out[2].size()) * L * sizeof(T);
  const std::int64_t high = larger(1, ROWS_BYTES / row_bytes), stride = down.stride;
  for (std::int64_t top = strip.out[1].first; top < strip.out[1].last; top += high) {
    const Range rows{top, smaller(top + high, strip.out[1].last)};
    // The rows that meet what is packed of x; zeros are packed where they are few.
    const auto inside = [&](std::int64_t ky) {
      const std::int64_t from = strip.in[1].first - down.dilation * ky + down.before;
      const std::int64_t last = strip.in[1].last - down.dilation * ky + down.before;
      return Range{larger(rows.first, from > 0 ? rounded_up(from, stride) : 0),
                   smaller(rows.last, last > 0 ? rounded_up(last, stride) : 0)};
    };
    for (std::int64_t band = some.first; band < some.last; ++band) {
      const std::int64_t kz = band / bands.each, plane = planes.stride * z + planes.dilation * kz - planes.before;
      if (plane < 0 || plane >= planes.read)
        continue;
      const Range kernel{bands.row(band) - kz * bands.rows, bands.row(band + 1) - kz * bands.rows};
      T *sum = sums + (bands.row(band) - bands.row(some.first)) * across.kernel * L;
      Range all{inside(kernel.first).first, inside(kernel.last - 1).last}; // that meet the whole band
      if (all.size() > 0)
        add_rows(walks, strip, z, all, plane, kernel, sum);
      else
        all = {rows.last, rows.last};
      for (std::int64_t ky = kernel.first; ky < kernel.last; ++ky, sum += across.kernel * L) {
        const Range own = inside(ky), above{own.first, smaller(own.last, all.first)};
        const Range below{larger(own.first, all.last), own.last};
        if (above.size() > 0)
          add_rows(walks, strip, z, above, plane, {ky, ky + 1}, sum);
        if (below.size() > 0)
          add_rows(walks, strip, z, below, plane, {ky, ky + 1}, sum);
      }
    }
  }
}

// The gradient of some bands of kernel rows of some blocks of channels.
template <class S> struct Gradient {
  using T = Computed<S>;
  static constexpr int L = lanes<T>;
  const ConvShape &s;
  const S *x, *y;
  S *w;
  Walk walks[3];
  Strips strips;
  Bands bands;
  std::int64_t channels, parts, high; // of the bands, and how many a part has
  bool around;                        // rows of zeros are packed, too

  Range bands_of(std::int64_t job) const {
    const std::int64_t first = job % parts * high, all = walks[0].kernel * bands.each;
    return {smaller(first, all), smaller(first + high, all)};
  }

  // x of a block, with zeros around it.
  void pack_x(const S *from, const Strip<T> &strip, const Block<S> &block, T *to) const {
    const Range rows{larger(strip.in[1].first, 0), smaller(strip.in[1].last, walks[1].read)};
    if (rows.size() <= 0) {
      zeros(to, strip.in[0].size() * strip.x_step[0]);
      return;
    }
    for (std::int64_t z = strip.in[0].first; z < strip.in[0].last; ++z, to += strip.x_step[0]) {
      const std::int64_t first = rows.first - strip.in[1].first;
      zeros(to, first * strip.x_step[1]);
      pack_map(from, s.x.axis, walks[2].read, {{z, z + 1}, rows, strip.in[2]}, block, to + first * strip.x_step[1]);
      zeros(to + (first + rows.size()) * strip.x_step[1], (strip.in[1].last - rows.last) * strip.x_step[1]);
    }
  }

  // One part of the maps; false where memory ran out.
  bool add(std::int64_t n, std::int64_t part, std::int64_t begin, std::int64_t end, T *sums) const {
    Strip<T> strip;
    strips.ranges(walks, part, strip.in, strip.out);
    if (around)
      strip.in[1] = walks[1].reads(strip.out[1]);
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
    for (std::int64_t job = begin; job < end; ++job, sums += size()) {
      const std::int64_t first = job / parts * L;
      if (job == begin || job % parts == 0) {
        Block<S> source(first, channels, s.x.channel, s.out_channels), target(first, channels, s.y.channel, 1);
        source.ahead = target.ahead = job + parts < end;
        pack_x(x + n * s.x.batch, strip, source, x_packed);
        pack_map(y + n * s.y.batch, s.y.axis, walks[2].written, strip.out, target, y_packed);
      }
      for (std::int64_t z = strip.out[0].first; z < strip.out[0].last; ++z)
        add_plane(walks, strip, z, bands, bands_of(job), sums);
    }
    return true;
  }

  std::int64_t size() const { return high * MOST_ROWS * walks[2].kernel * L; } // of the sums of a job

  void write(std::int64_t job, const T *sums) const {
    const Block<S> block(job / parts * L, channels, s.w.batch, 1);
    const std::int64_t columns = walks[2].kernel, kernel_rows = walks[1].kernel;
    const Range range = bands_of(job);
    for (std::int64_t row = bands.row(range.first); row < bands.row(range.last); ++row, sums += columns * L)
      unpack_row(sums, s.w.axis[2], block, columns,
                 w + row / kernel_rows * s.w.axis[0] + row % kernel_rows * s.w.axis[1]);
  }

  // So many jobs share a pass over the maps as keeps their sums in the cache.
  bool run(std::int64_t begin, std::int64_t end) const {
    const std::int64_t together = larger(1, SUMS_BYTES / (size() * sizeof(T)));
    const bool empty = walks[0].written * walks[1].written * walks[2].written == 0;
    for (std::int64_t last; begin < end; begin = last) {
      last = smaller(end, begin + together);
      T *sums = sums_memory.of<T>((last - begin) * size());
      if (!sums)
        return false;
      zeros(sums, (last - begin) * size());
      for (std::int64_t n = 0; n < s.batch && !empty; ++n)
        for (std::int64_t part = 0; part < strips.count; ++part)
          if (!add(n, part, begin, last, sums))
            return false;
      for (std::int64_t job = begin; job < last; ++job)
        write(job, sums + (job - begin) * size());
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
  const Walk walks[3] = {{s.axes[0], s.pass}, {s.axes[1], s.pass}, {s.axes[2], s.pass}};
  const Bands bands(walks[1]);
  // Where there are fewer blocks than threads, each computes some bands.
  const std::int64_t all = walks[0].kernel * bands.each;
  const std::int64_t parts = smaller(all, divided_up(s.threads, blocks)), high = divided_up(all, parts);
  const Gradient<S> gradient{s, x, y, w, {walks[0], walks[1], walks[2]}, Strips(walks, sizeof(T) * L, 1, 1),
                             bands, channels, parts, high, few_beyond(walks[1])};
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    if (!gradient.run(begin, end))
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  };
  const std::int64_t positions = s.batch * walks[0].written * walks[1].written * walks[2].written;
  const std::int64_t macs = positions * gradient.size();
  parallel(static_cast<int>(s.threads), blocks * parts, larger(1, MACS_PER_THREAD / larger(1, macs)),
           &called<decltype(some)>, &some);
  return failed;
}

template int weight_gradient<float>(const ConvShape &, const float *, const float *, float *, Parallel);
template int weight_gradient<double>(const ConvShape &, const double *, const double *, double *, Parallel);
template int weight_gradient<bf16>(const ConvShape &, const bf16 *, const bf16 *, bf16 *, Parallel);

} // namespace reconv::RECONV_ISA::channelwise
