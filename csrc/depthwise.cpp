// Depthwise convolution: vectors of channels.
//
// Maps whose channels are neighbours are read and written in place; others, and those of large kernels, are first
// copied to [row][column][lane], a block of channels at a time, with zeros around each row.
#include "depthwise_pack.hpp"
#include "depthwise_tile.hpp"

namespace reconv::RECONV_ISA {
namespace channelwise {

template <class S> int weight_gradient(const ConvShape &, const S *x, const S *y, S *w, Parallel);

namespace {

constexpr int MOST_ROWS = 4;                           // that a tile walks down while what it reads stays in L1
constexpr std::int64_t TAPS_IN_PLACE = 64;             // kernels of more are worth the copy
constexpr std::int64_t SMALL_TAPS = 9, FEW_BLOCKS = 8; // small kernels over many channels read memory best in order
constexpr std::int64_t LARGE_BYTES = 1024 * 1024;      // maps of more are not in L2

thread_local Scratch lines_memory, weights_memory, map_memory, written_memory, bias_memory;

// A map in memory: index 0 of every axis lies `origin` elements after `data`.
template <class T> struct Map {
  T *data;
  std::int64_t origin, step[3];
};

// A run of positions in each row, and the tiles that cover it.
template <class T> struct Line {
  Run run;
  std::int64_t size;
  const Tile<T> *tiles; // without and with edges
};

template <class T> struct Problem {
  Walk walks[3];
  std::int64_t channels, maps, taps; // lanes in all, maps that are summed for each, taps of a map
  std::int64_t lines, together, relu; // runs in a row, rows whose tiles are computed together
};

template <class T> Line<T> *lines_of(const Problem<T> &p, Range columns) {
  static constexpr auto tiles = tiles_of<T>(std::make_integer_sequence<int, SIZES>{});
  Line<T> *lines = lines_memory.of<Line<T>>(p.lines);
  for (std::int64_t i = 0; lines && i < p.lines; ++i) {
    const Run run = p.walks[2].run(i, columns);
    const std::int64_t apart = run.in_step == run.in_tap ? 1 : run.in_step == 2 * run.in_tap ? 2 : 0;
    const int size = size_for(run.positions);
    lines[i] = {run, TILE_SIZES[size], tiles.of[size][apart]};
  }
  return lines;
}

// Some rows of what is written, for the blocks of channels of the window, which holds the steps of single taps.
template <class T>
void tiles(const Problem<T> &p, Window window, const Line<T> *lines, bool padded, const T *x, const T *weights,
           const T *bias, T *y, std::int64_t y_column) {
  const std::int64_t x_column = window.x_tap, w_column = window.w_tap, width = p.walks[2].read;
  for (const Line<T> *line = lines; line < lines + p.lines; ++line) {
    const Run &run = line->run;
    window.x_tap = run.in_tap * x_column, window.w_tap = run.tap_step * w_column;
    window.x_position = run.in_step * x_column, window.y_position = run.out_step * y_column;
    for (std::int64_t done = 0; done < run.positions; done += line->size) {
      const std::int64_t first = smaller(done, run.positions - line->size);
      std::int64_t column = run.in_first + first * run.in_step, taps = run.taps, skipped = 0;
      const std::int64_t last = column + (line->size - 1) * run.in_step;
      bool edge = false;
      if (column < 0 || last + (taps - 1) * run.in_tap >= width) { // some taps are beyond the map for all positions
        skipped = last < 0 ? smaller(taps, rounded_up(-last, run.in_tap)) : 0;
        taps = column >= width ? 0 : smaller(taps, rounded_up(width - column, run.in_tap));
        column += skipped * run.in_tap;
        window.before = column < 0 ? rounded_up(-column, run.in_tap) : 0;
        window.inside = rounded_up(larger(0, width - column), run.in_tap) - window.before;
        edge = !padded;
      }
      window.taps = larger(0, taps - skipped);
      const T *w = weights + (run.tap_first + skipped * run.tap_step) * w_column;
      line->tiles[edge](window, x + column * x_column, w, bias,
                        y + (run.out_first + first * run.out_step) * y_column);
    }
  }
}

// The order in which rows are written: in bands of so many, each plane by plane, so that the planes that a row meets
// are still in the cache when those of the next plane are written.
struct Order {
  Range planes, rows;
  std::int64_t band;
  std::int64_t plane, row, top, bottom; // the row that is next, and its band

  void go_to(std::int64_t place) {
    const std::int64_t bands = place / (planes.size() * band);
    top = rows.first + bands * band, bottom = smaller(top + band, rows.last);
    place -= bands * band * planes.size();
    plane = planes.first + place / (bottom - top), row = top + place % (bottom - top);
  }
  void step() {
    if (++row < bottom)
      return;
    if (++plane == planes.last)
      plane = planes.first, top = bottom, bottom = smaller(top + band, rows.last);
    row = top;
  }
};

// Some of the rows that are written, a few together: what they read of a tile's columns stays in L1.
template <class T>
void rows(const Problem<T> &p, Window window, Order order, Range places, const Line<T> *lines, bool padded,
          const Map<const T> &read, const T *weights, const T *bias, const Map<T> &written) {
  Row together[MOST_ROWS];
  const std::int64_t w_plane = window.w_step[1], w_row = window.w_step[2];
  window.rows = together;
  order.go_to(places.first);
  for (std::int64_t i = places.first; i < places.last; i += window.row_count) {
    window.row_count = smaller(p.together, places.last - i);
    for (std::int64_t r = 0; r < window.row_count; ++r, order.step()) {
      const Run plane = p.walks[0].at(order.plane), line = p.walks[1].at(order.row);
      const Range planes = p.walks[0].inside(plane), taps = p.walks[1].inside(line);
      window.x_step[1] = plane.in_tap * read.step[0], window.x_step[2] = line.in_tap * read.step[1];
      // In all rows that are walked together the taps step alike: only the gradient's sign differs from forward.
      window.w_step[1] = plane.tap_step * w_plane, window.w_step[2] = line.tap_step * w_row;
      together[r] = {planes.size(), taps.size(),
                     read.origin + (plane.in_first + planes.first * plane.in_tap) * read.step[0] +
                         (line.in_first + taps.first * line.in_tap) * read.step[1],
                     (plane.tap_first + planes.first * plane.tap_step) * w_plane +
                         (line.tap_first + taps.first * line.tap_step) * w_row,
                     written.origin + order.plane * written.step[0] + order.row * written.step[1]};
    }
    tiles(p, window, lines, padded, read.data, weights, bias, written.data, written.step[2]);
  }
}

// The two sides of the walk.
template <class S> struct Sides {
  const S *read, *w, *b;
  S *written;
  Strides from, to; // of read and written
};

template <class T> Window window_of(const Problem<T> &p, const Map<const T> &read, std::int64_t map_step) {
  constexpr int L = lanes<T>;
  const std::int64_t columns = p.walks[2].kernel, rows = p.walks[1].kernel;
  Window window{};
  window.maps = p.maps;
  window.x_step[0] = map_step, window.x_tap = read.step[2];
  window.w_step[0] = p.taps * L, window.w_step[1] = rows * columns * L, window.w_step[2] = columns * L;
  window.w_tap = L;
  window.blocks = 1, window.last_block = 0, window.block_weights = p.maps * p.taps * L;
  window.relu = p.relu;
  return window;
}

template <class S, class T = Computed<S>>
T *block_weights(const ConvShape &s, const Problem<T> &p, const S *w, std::int64_t first, T *to) {
  const Block<S> block(first, p.channels, s.w.batch * p.maps, 1);
  for (std::int64_t map = 0; map < p.maps; ++map)
    pack_weights(w + map * s.w.batch, s.w, s.axes, block, to + map * p.taps * lanes<T>);
  return to;
}

// Rows of a band: all planes that they meet fit a cache.
template <class T> std::int64_t band_of(const Problem<T> &p) {
  const std::int64_t plane = p.walks[0].reads({0, 1}).size() * p.walks[2].read * p.channels * sizeof(T);
  std::int64_t band = p.walks[1].written;
  while (p.walks[0].written > 1 && band > MOST_ROWS && plane * p.walks[1].reads({0, band}).size() > Strips::L2_BYTES)
    band = divided_up(band, 2);
  return band;
}

// All channels of some rows, without a copy of the maps.
template <class T>
int in_place(const ConvShape &s, const Problem<T> &p, const Sides<T> &sides, Parallel parallel) {
  constexpr int L = lanes<T>;
  const std::int64_t blocks = divided_up(p.channels, L), last = p.channels - L;
  const std::int64_t all = p.walks[0].written * p.walks[1].written;
  const Order order{{0, p.walks[0].written}, {0, p.walks[1].written}, band_of(p), 0, 0, 0, 0};
  const std::int64_t read_size = p.walks[0].read * p.walks[1].read * p.walks[2].read;
  const std::int64_t bytes = s.batch * p.channels * (read_size + all * p.walks[2].written) * sizeof(T);
  T *weights = weights_memory.of<T>(blocks * p.taps * L), *bias = bias_memory.of<T>(p.channels);
  Line<T> *lines = lines_of(p, {0, p.walks[2].written});
  if (!weights || !bias || !lines)
    return 1;
  for (std::int64_t block = 0; block < blocks; ++block)
    block_weights(s, p, sides.w, smaller(block * L, last), weights + block * p.taps * L);
  if (sides.b)
    copied(sides.b, p.channels, bias);
  else
    zeros(bias, p.channels);
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t n = begin / all, stop = smaller(end, (n + 1) * all);
      const std::int64_t *x_step = sides.from.axis, *y_step = sides.to.axis;
      const Map<const T> read{sides.read + n * sides.from.batch, 0, {x_step[0], x_step[1], x_step[2]}};
      const Map<T> written{sides.written + n * sides.to.batch, 0, {y_step[0], y_step[1], y_step[2]}};
      Window window = window_of(p, read, 0);
      window.blocks = blocks, window.last_block = last, window.ahead = bytes > LARGE_BYTES;
      rows(p, window, order, {begin - n * all, stop - n * all}, lines, false, read, weights, bias, written);
      begin = stop;
    }
  };
  const std::int64_t macs = p.walks[2].written * p.taps * p.channels;
  parallel(static_cast<int>(s.threads), s.batch * all, larger(1, MACS_PER_THREAD / larger(1, macs)),
           &called<decltype(some)>, &some);
  return 0;
}

// A block of channels at a time.
template <class S, class T = Computed<S>>
int packed(const ConvShape &s, const Problem<T> &p, const Sides<S> &sides, Parallel parallel) {
  constexpr int L = lanes<T>;
  const bool gradient = s.pass == Pass::input_gradient;
  const std::int64_t blocks = divided_up(p.channels, L);
  // Where sums have several rows, their order depends on where in a tile they are: a row is then cut nowhere else for
  // more threads.
  const bool one_row = p.walks[0].written * p.walks[1].written == 1, short_sums = p.maps * p.taps == p.walks[2].kernel;
  const std::int64_t parts = one_row && !short_sums ? 1 : divided_up(s.threads, blocks * s.batch);
  const Strips strips(p.walks, sizeof(T) * L, p.maps, parts, true);
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    T *weights = weights_memory.of<T>(p.maps * p.taps * L), bias[L];
    if (!weights)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    for (std::int64_t job = begin; job < end; ++job) { // blocks outermost: their weights stay in the cache
      const std::int64_t block = job / (s.batch * strips.count), n = job / strips.count % s.batch, first = block * L;
      const Block<S> source(first, p.channels, sides.from.channel * p.maps, gradient ? 1 : s.out_channels);
      const Block<S> target(first, p.channels, sides.to.channel, 1);
      if (job == begin || job % (s.batch * strips.count) == 0) {
        block_weights(s, p, sides.w, first, weights);
        for (std::int64_t lane = 0; lane < L; ++lane)
          bias[lane] = sides.b && lane < target.used ? widened(sides.b[first + lane]) : T{};
      }
      Range in[3], out[3];
      strips.ranges(p.walks, job % strips.count, in, out);
      Map<const T> read{nullptr, 0, {in[1].size() * in[2].size() * L, in[2].size() * L, L}};
      Map<T> written{nullptr, 0, {out[1].size() * out[2].size() * L, out[2].size() * L, L}};
      const std::int64_t map_step = in[0].size() * read.step[0];
      bool direct = false; // written where it belongs
      if constexpr (std::is_same_v<S, T>)
        direct = target.neighbours && target.used == L;
      T *map = map_memory.of<T>(larger(1, p.maps * map_step)); // all that is read may be zeros
      T *result = direct ? nullptr : written_memory.of<T>(out[0].size() * written.step[0]);
      const Line<T> *lines = lines_of(p, out[2]);
      if (!map || (!direct && !result) || !lines)
        return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      for (std::int64_t i = 0; i < p.maps; ++i)
        pack_map(sides.read + n * sides.from.batch + i * sides.from.channel, sides.from.axis, p.walks[2].read, in,
                 source, map + i * map_step);
      read.data = map;
      read.origin = -(in[0].first * read.step[0] + in[1].first * read.step[1] + in[2].first * read.step[2]);
      S *to = sides.written + n * sides.to.batch;
      if constexpr (std::is_same_v<S, T>)
        if (direct)
          written = {to + first, 0, {sides.to.axis[0], sides.to.axis[1], sides.to.axis[2]}};
      if (!direct) {
        written.data = result;
        for (int axis = 0; axis < 3; ++axis)
          written.origin -= out[axis].first * written.step[axis];
      }
      rows(p, window_of(p, read, map_step), {out[0], out[1], out[1].size(), 0, 0, 0, 0},
           {0, out[0].size() * out[1].size()}, lines, true, read, weights, bias, written);
      if (!direct)
        unpack_map(result, sides.to.axis, out, target, to);
    }
  };
  std::int64_t macs = p.maps * p.taps * L; // of one job
  for (int axis = 0; axis < 3; ++axis)
    macs *= axis == strips.axis ? strips.length : p.walks[axis].written;
  parallel(static_cast<int>(s.threads), blocks * s.batch * strips.count, larger(1, MACS_PER_THREAD / larger(1, macs)),
           &called<decltype(some)>, &some);
  return failed;
}

} // namespace
} // namespace channelwise

template <class S>
int depthwise(const ConvShape &s, const void *x, const void *w, const void *b, const void *y, Parallel parallel) {
  using namespace channelwise;
  using T = Computed<S>;
  const bool gradient = s.pass == Pass::input_gradient;
  S *const x_ = static_cast<S *>(const_cast<void *>(x)), *const y_ = static_cast<S *>(const_cast<void *>(y));
  if (s.pass == Pass::weight_gradient)
    return weight_gradient(s, x_, y_, static_cast<S *>(const_cast<void *>(w)), parallel);
  const Sides<S> sides{gradient ? y_ : x_, static_cast<const S *>(w), static_cast<const S *>(b),
                       gradient ? x_ : y_, gradient ? s.y : s.x, gradient ? s.x : s.y};
  Problem<T> p{};
  std::int64_t size = s.batch;
  p.taps = 1, p.relu = s.relu;
  for (int axis = 0; axis < 3; ++axis) {
    p.walks[axis] = Walk(s.axes[axis], s.pass);
    p.taps *= s.axes[axis].kernel, size *= p.walks[axis].written;
  }
  p.lines = p.walks[2].runs();
  p.channels = gradient ? s.groups : s.groups * s.out_channels;
  p.maps = gradient ? s.out_channels : 1;
  if (size == 0 || p.channels == 0)
    return 0;
  p.together = MOST_ROWS;
  const Run run = p.walks[2].run(0, {0, p.walks[2].written});
  const bool shared = run.in_step <= 2 * run.in_tap && run.in_step % run.in_tap == 0; // what neighbours read
  if constexpr (std::is_same_v<S, T>)
    if (sides.from.channel == 1 && sides.to.channel == 1 && s.out_channels == 1 && p.channels >= lanes<T> && shared &&
        p.taps <= TAPS_IN_PLACE) {
      if (p.taps <= SMALL_TAPS && p.channels > FEW_BLOCKS * lanes<T>)
        p.together = 1;
      return in_place(s, p, sides, parallel);
    }
  return packed(s, p, sides, parallel);
}

template int depthwise<float>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int depthwise<double>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int depthwise<bf16>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);

} // namespace reconv::RECONV_ISA
