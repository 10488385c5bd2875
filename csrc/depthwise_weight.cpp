// The weight gradient of a depthwise convolution: lanes are channels, and a few taps of some kernel rows stay in
// registers while the rows of a strip stream by. Short kernels of one dimension have a way of their own.
#include "depthwise_pack.hpp"
#include "depthwise_weight_line.hpp"
#include "depthwise_weight_stream.hpp"

namespace reconv::RECONV_ISA::channelwise {
namespace {

constexpr int TOGETHER = 2;                     // blocks that are packed at once
constexpr std::int64_t ROWS_BYTES = 20 * 1024;  // of x and y that pass by each kernel row while in L1
constexpr std::int64_t SUMS_BYTES = 128 * 1024; // of blocks of channels that share a pass over the maps
constexpr std::int64_t FAR_BYTES = 1024;        // the processor does not foresee steps of more

thread_local Scratch x_memory, y_memory, sums_memory, runs_memory;

// Whether few of the rows that meet a kernel row are beyond the map.
inline bool few_beyond(const Walk &down) {
  std::int64_t inside = 0;
  for (std::int64_t ky = 0; ky < down.kernel; ++ky) {
    const std::int64_t offset = down.dilation * ky - down.before;
    const std::int64_t first = offset < 0 ? rounded_up(-offset, down.stride) : 0;
    const std::int64_t end = offset < down.read ? rounded_up(down.read - offset, down.stride) : 0;
    inside += larger(0, smaller(down.written, end) - first);
  }
  return 4 * inside >= 3 * down.kernel * down.written;
}

// One block of channels of one strip: x is packed, with zeros around its rows, and y mostly, too.
template <class T> struct Strip {
  Range in[3], out[3];
  const Run *runs; // of columns
  const T *x = nullptr, *y = nullptr;
  std::int64_t x_step[3], y_step[3];
};

// Adds some rows of one plane of what is written to the sums of neighbouring kernel rows, all of which meet them.
template <class T>
void add_rows(const Walk (&walks)[3], const Strip<T> &strip, std::int64_t z, Range rows, std::int64_t plane,
              Range kernel_rows, T *sums) {
  static constexpr Streams<T> streams = all_streams<T>();
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
                        run->in_tap * L, down.dilation * strip.x_step[1], strip.y_step[1],
                        run->out_step * strip.y_step[2], run->taps * L};
    const T *x = from + (run->in_first - strip.in[2].first) * L;
    const T *y = by + (run->out_first - strip.out[2].first) * strip.y_step[2];
    if (apart && kernel_rows.size() == BAND) { // of so few taps
      streams.band[apart][run->taps - 1](stream, x, y, sums);
      continue;
    }
    for (std::int64_t row = 0; row < kernel_rows.size(); ++row) {
      const T *met = x + row * stream.x_kernel_row;
      T *sum = sums + row * stream.sums_row;
      for (std::int64_t left = run->taps, most = most_taps(apart); left > 0;) {
        const std::int64_t some = left <= most ? left : divided_up(left, divided_up(left, most));
        streams.of[apart][some - 1](stream, met, y, sum);
        left -= some, met += some * stream.x_tap, sum += some * L;
      }
    }
  }
}

// The kernel's rows, in bands that are in registers together; those of all planes are counted on.
struct Bands {
  std::int64_t rows, size, each; // rows of a plane and of a band, and bands of a plane
  Bands(const Walk &down, const Walk &across)
      : rows(down.kernel), size(across.kernel == 1 || across.kernel == 3 ? BAND : 1), each(divided_up(rows, size)) {}
  Range kernel_rows(std::int64_t band) const { return {band * size, smaller((band + 1) * size, rows)}; } // of a plane
  std::int64_t row(std::int64_t band) const { return band / each * rows + band % each * size; } // of all planes
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
    T *sum = sums;
    for (std::int64_t band = some.first; band < some.last; ++band) {
      const std::int64_t kz = planes.kernel == 1 ? 0 : band / bands.each; // divisions take long
      const Range kernel = bands.kernel_rows(band - kz * bands.each);
      const std::int64_t plane = planes.stride * z + planes.dilation * kz - planes.before;
      if (plane >= 0 && plane < planes.read) {
        const Range first = inside(kernel.first), last = kernel.size() > 1 ? inside(kernel.last - 1) : first;
        Range all{first.first, last.last}; // that meet the whole band
        if (all.size() > 0)
          add_rows(walks, strip, z, all, plane, kernel, sum);
        else
          all = {rows.last, rows.last};
        for (std::int64_t ky = kernel.first; kernel.size() > 1 && ky < kernel.last; ++ky) {
          const Range own = inside(ky), above{own.first, smaller(own.last, all.first)};
          const Range below{larger(own.first, all.last), own.last};
          T *own_sum = sum + (ky - kernel.first) * across.kernel * L;
          if (above.size() > 0)
            add_rows(walks, strip, z, above, plane, {ky, ky + 1}, own_sum);
          if (below.size() > 0)
            add_rows(walks, strip, z, below, plane, {ky, ky + 1}, own_sum);
        }
      }
      sum += kernel.size() * across.kernel * L;
    }
  }
}

// Some blocks of neighbouring channels, with zeros around the map: read at once, they are neighbours in memory.
template <class S, class T>
void pack_together(const S *from, const std::int64_t (&step)[3], std::int64_t high, std::int64_t width,
                   const Range (&ranges)[3], std::int64_t size, T *to) {
  constexpr int L = lanes<T>;
  const Range &columns = ranges[2];
  const Range held{larger(columns.first, 0), smaller(columns.last, width)};
  for (std::int64_t z = ranges[0].first; z < ranges[0].last; ++z)
    for (std::int64_t y = ranges[1].first; y < ranges[1].last; ++y, to += columns.size() * L) {
      if (y < 0 || y >= high || held.size() <= 0) {
        for (int b = 0; b < TOGETHER; ++b)
          zero_vectors(to + b * size, columns.size() * L);
        continue;
      }
      const std::int64_t left = (held.first - columns.first) * L, right = (held.last - columns.first) * L;
      const S *at = from + z * step[0] + y * step[1] + held.first * step[2];
      for (int b = 0; b < TOGETHER; ++b) {
        zero_vectors(to + b * size, left);
        zero_vectors(to + b * size + right, columns.size() * L - right);
      }
      for (T *line = to + left; line < to + right; line += L, at += step[2])
        RECONV_UNROLLED
        for (int b = 0; b < TOGETHER; ++b)
          store(line + b * size, load(at + b * L));
    }
}

// One block, with zeros around it.
template <class S, class T>
void pack_around(const S *from, const std::int64_t (&step)[3], std::int64_t high, std::int64_t width,
                 const Range (&ranges)[3], const Block<S> &block, T *to) {
  const std::int64_t row = ranges[2].size() * lanes<T>;
  const Range rows{larger(ranges[1].first, 0), smaller(ranges[1].last, high)};
  if (rows.size() <= 0) {
    zeros(to, ranges[0].size() * ranges[1].size() * row);
    return;
  }
  for (std::int64_t z = ranges[0].first; z < ranges[0].last; ++z) {
    to = zeros(to, (rows.first - ranges[1].first) * row);
    pack_map(from, step, width, {{z, z + 1}, rows, ranges[2]}, block, to);
    to = zeros(to + rows.size() * row, (ranges[1].last - rows.last) * row);
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
  bool once;                          // y, whose channels are neighbours, is read once

  Range bands_of(std::int64_t job) const {
    const std::int64_t first = job % parts * high, all = walks[0].kernel * bands.each;
    return {smaller(first, all), smaller(first + high, all)};
  }

  // A map, of which some ranges are packed; blocks up to `end` are.
  struct Packed {
    const S *map;
    const Strides &steps;
    std::int64_t repeat, high, wide; // neighbouring lanes that share a channel; sizes of the map
    const Range (&ranges)[3];
    T *memory;
    std::int64_t size, end; // of a block
  };

  // Where a block is packed. Unless `more`, no other one follows.
  const T *pack(Packed &p, std::int64_t block, bool more) const {
    const std::int64_t first = block * L;
    if (block < p.end) // together with the one before it
      return p.memory + (block + TOGETHER - p.end) * p.size;
    if (more && p.steps.channel == 1 && p.repeat == 1 && first + TOGETHER * L <= channels) {
      p.end = block + TOGETHER;
      pack_together(p.map + first, p.steps.axis, p.high, p.wide, p.ranges, p.size, p.memory);
    } else {
      Block<S> source(first, channels, p.steps.channel, p.repeat);
      source.ahead = more;
      p.end = block + 1;
      pack_around(p.map, p.steps.axis, p.high, p.wide, p.ranges, source, p.memory);
    }
    return p.memory;
  }

  // y of a block where it is.
  const S *in_place(const S *from, const Range (&out)[3]) const {
    for (int axis = 0; axis < 3; ++axis)
      from += out[axis].first * s.y.axis[axis];
    if (s.y.axis[2] * static_cast<std::int64_t>(sizeof(S)) > FAR_BYTES)
      for (std::int64_t z = 0; z < out[0].size(); ++z)
        for (std::int64_t row = 0; row < out[1].size(); ++row)
          for (std::int64_t i = 0; i < out[2].size(); ++i)
            __builtin_prefetch(from + z * s.y.axis[0] + row * s.y.axis[1] + i * s.y.axis[2]);
    return from;
  }

  // One part of the maps; false where memory ran out.
  bool add(std::int64_t n, std::int64_t part, std::int64_t begin, std::int64_t end, T *sums) const {
    Strip<T> strip;
    strips.ranges(walks, part, strip.in, strip.out);
    if (around)
      strip.in[1] = walks[1].reads(strip.out[1]);
    std::int64_t x_size = L, y_size = L;
    for (int axis = 2; axis >= 0; --axis) {
      strip.x_step[axis] = x_size, strip.y_step[axis] = y_size;
      x_size *= strip.in[axis].size(), y_size *= strip.out[axis].size();
    }
    T *x_packed = x_memory.of<T>(larger(1, TOGETHER * x_size)), *y_packed = y_memory.of<T>(TOGETHER * y_size);
    Run *runs = runs_memory.of<Run>(walks[2].runs());
    if (!x_packed || !y_packed || !runs)
      return false;
    for (std::int64_t i = 0; i < walks[2].runs(); ++i)
      runs[i] = walks[2].run(i, strip.out[2]);
    strip.runs = runs;
    Packed from{x + n * s.x.batch, s.x, s.out_channels, walks[1].read, walks[2].read, strip.in, x_packed, x_size, 0};
    Packed by{y + n * s.y.batch, s.y, 1, walks[1].written, walks[2].written, strip.out, y_packed, y_size, 0};
    const Strip<T> packed = strip;
    for (std::int64_t job = begin; job < end; ++job, sums += size()) {
      const std::int64_t block = job / parts;
      if (job == begin || job % parts == 0) {
        strip = packed;
        if constexpr (std::is_same_v<S, T>)
          if (once && (block + 1) * L <= channels) {
            strip.y = in_place(y + n * s.y.batch + block * L, strip.out);
            for (int axis = 0; axis < 3; ++axis)
              strip.y_step[axis] = s.y.axis[axis];
          }
        const bool more = job + parts < end;
        strip.x = pack(from, block, more);
        if (!strip.y)
          strip.y = pack(by, block, more);
      }
      for (std::int64_t z = strip.out[0].first; z < strip.out[0].last; ++z)
        add_plane(walks, strip, z, bands, bands_of(job), sums);
    }
    return true;
  }

  std::int64_t size() const { return high * bands.size * walks[2].kernel * L; } // of the sums of a job

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
  if (is_line(s))
    return line_gradients(s, x, y, w, parallel);
  const Walk walks[3] = {{s.axes[0], s.pass}, {s.axes[1], s.pass}, {s.axes[2], s.pass}};
  const Bands bands(walks[1], walks[2]);
  // Where there are fewer blocks than threads, each computes some bands.
  const std::int64_t all = walks[0].kernel * bands.each;
  const std::int64_t parts = smaller(all, divided_up(s.threads, blocks)), high = divided_up(all, parts);
  const Gradient<S> gradient{s, x, y, w, {walks[0], walks[1], walks[2]}, Strips(walks, sizeof(T) * L, 1, 1),
                             bands, channels, parts, high, bands.size > 1 && few_beyond(walks[1]),
                             s.y.channel == 1 && walks[0].kernel * bands.each == 1 && walks[2].kernel <= MOST_TAPS};
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
