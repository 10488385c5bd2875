// Where the points of a deformable convolution lie, and what a map holds there: channels are lanes.
#pragma once

#include "deform.hpp"
#include "rows.hpp"

namespace reconv::RECONV_ISA {

constexpr int STRETCH = 128;              // positions that are computed together
constexpr std::int32_t FARTHEST = 1 << 30; // an offset beyond it leads outside of every map

template <class T> using Index = Lane<T>;

// The maps of a batch with their channels side by side and two zeros around each, so that points outside read zeros.
// Neighbours share theirs: a row's first two pixels follow the last one of the row above.
struct Frame {
  std::int64_t height, width, channels, rows, row;

  explicit Frame(const DeformShape &d)
      : height(d.axes[0].input), width(d.axes[1].input), channels(d.in_channels), rows(d.batch * (height + 2) + 2),
        row((width + 2) * channels) {}
  template <class T> std::int64_t size() const { return rows * row + 2 * channels + lanes<T>; }
};

// Rows begin … end of the frame from x.
template <class S>
void frame_rows(const DeformShape &d, const Frame &frame, const S *x, Computed<S> *map, std::int64_t begin,
                std::int64_t end) {
  const std::int64_t c = frame.channels, plane = frame.height * frame.width;
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t n = r / (frame.height + 2), h = r % (frame.height + 2) - 2;
    Computed<S> *to = map + r * frame.row;
    zeros(to, h < 0 ? frame.row : 2 * c);
    if (h >= 0 && d.channels_last)
      read_row(x + (n * plane + h * frame.width) * c, 1, c, c, frame.width, to + 2 * c, c);
    else if (h >= 0)
      read_row(x + n * c * plane + h * frame.width, plane, 1, c, frame.width, to + 2 * c, c);
    if (r + 1 == frame.rows)
      zeros(to + frame.row, 2 * c + lanes<Computed<S>>);
  }
}

// The other way round; what lies on the zeros is dropped.
template <class S>
void unframe_rows(const DeformShape &d, const Frame &frame, const Computed<S> *map, S *x, std::int64_t begin,
                  std::int64_t end) {
  const std::int64_t c = frame.channels, plane = frame.height * frame.width;
  for (std::int64_t at = begin; at < end; ++at) {
    const std::int64_t n = at / frame.height, h = at % frame.height;
    const Computed<S> *from = map + (n * (frame.height + 2) + h + 2) * frame.row + 2 * c;
    if (d.channels_last)
      write_row(from, c, c, frame.width, x + (n * plane + h * frame.width) * c, 1, c);
    else
      write_row(from, c, c, frame.width, x + n * c * plane + h * frame.width, plane, 1);
  }
}

// Calls body(image, first position in it, how many, how many before them) for each image that a stretch meets.
template <class F> void each_image(std::int64_t begin, std::int64_t count, std::int64_t plane, const F &body) {
  for (std::int64_t done = 0, some; done < count; done += some) {
    const std::int64_t at = begin + done;
    some = smaller(count - done, plane - at % plane);
    body(at / plane, at % plane, some, done);
  }
}

// Cuts channels begin … end at the multiples of `size`: body(number of the group, first channel, how many).
template <class F> void each_group(std::int64_t begin, std::int64_t end, std::int64_t size, const F &body) {
  for (std::int64_t at = begin, next; at < end; at = next) {
    next = smaller(end, (at / size + 1) * size);
    body(at / size, at, next - at);
  }
}

// Neighbouring positions, and where their windows begin.
template <class T> struct Stretch {
  std::int64_t begin, count;
  Index<T> y[STRETCH + lanes<T>] = {}, x[STRETCH + lanes<T>] = {};

  Stretch(const DeformShape &d, std::int64_t begin, std::int64_t count) : begin(begin), count(count) {
    const std::int64_t high = d.axes[0].output, wide = d.axes[1].output;
    std::int64_t i = begin / wide % high, j = begin % wide;
    for (std::int64_t p = 0; p < count; ++p) {
      y[p] = i * d.axes[0].stride - d.axes[0].before;
      x[p] = j * d.axes[1].stride - d.axes[1].before;
      if (++j == wide)
        j = 0, i = i + 1 == high ? 0 : i + 1;
    }
  }
};

// One kernel point at each position of a stretch: the first corner of its cell, as a place in the frame, how far it
// lies from that along each axis, the mask, and the shares of the corners.
template <class T> struct Points {
  Index<T> at[STRETCH + lanes<T>] = {}; // beyond the stretch, too, it must be somewhere in the frame
  T y[STRETCH + lanes<T>], x[STRETCH + lanes<T>], mask[STRETCH + lanes<T>], share[4][STRETCH + lanes<T>] = {};
};

template <class S> [[gnu::always_inline]] inline Vector<Computed<S>> load_of(const S *from, std::int64_t left) {
  return left >= lanes<Computed<S>> ? load(from) : load(from, left);
}

// The whole number below each offset, and what is above it, which is NaN for NaN.
template <class T> [[gnu::always_inline]] inline Vector<Index<T>> floored(Vector<T> offset, Vector<T> &above) {
  const Vector<T> most = Vector<T>{} + T(FARTHEST);
  offset = offset > most ? most : offset;
  offset = offset < -most ? -most : offset;
  Vector<Index<T>> low = __builtin_convertvector(offset, Vector<Index<T>>);
  const auto negative = offset < __builtin_convertvector(low, Vector<T>); // was cut towards zero
  low += reinterpret_cast<Vector<Index<T>>>(negative);                    // true is −1
  above = offset - __builtin_convertvector(low, Vector<T>);
  return low > -FARTHEST ? low : Vector<Index<T>>{} - FARTHEST;
}

template <class S>
void locate(const DeformShape &d, const Frame &frame, const Stretch<Computed<S>> &stretch, const S *offset,
            const S *mask, std::int64_t group, std::int64_t tap, Points<Computed<S>> &to) {
  using T = Computed<S>;
  const std::int64_t taps = d.axes[0].kernel * d.axes[1].kernel, plane = d.axes[0].output * d.axes[1].output;
  const Index<T> row = frame.row, c = frame.channels, height = frame.height, width = frame.width;
  const Index<T> tap_y = tap / d.axes[1].kernel * d.axes[0].dilation;
  const Index<T> tap_x = tap % d.axes[1].kernel * d.axes[1].dilation;
  each_image(stretch.begin, stretch.count, plane, [&](auto n, auto first, auto some, auto done) {
    const std::int64_t point = (n * d.offset_groups + group) * taps + tap;
    const S *offset_y = offset + 2 * point * plane + first, *offset_x = offset_y + plane;
    const Index<T> image = (n * (frame.height + 2) + 2) * frame.row + 2 * frame.channels;
    for (std::int64_t p = 0; p < some; p += lanes<T>) {
      Vector<T> above_y, above_x, share = Vector<T>{} + 1;
      Vector<Index<T>> y = floored<T>(load_of(offset_y + p, some - p), above_y);
      Vector<Index<T>> x = floored<T>(load_of(offset_x + p, some - p), above_x);
      const std::int64_t at = done + p;
      y += load(stretch.y + at) + tap_y, x += load(stretch.x + at) + tap_x;
      y = y < -2 ? Vector<Index<T>>{} - 2 : y > height ? Vector<Index<T>>{} + height : y;
      x = x < -2 ? Vector<Index<T>>{} - 2 : x > width ? Vector<Index<T>>{} + width : x;
      if (mask)
        share = load_of(mask + point * plane + first + p, some - p);
      store(to.at + at, y * row + x * c + image);
      store(to.y + at, above_y), store(to.x + at, above_x), store(to.mask + at, share);
      const Vector<T> upper = (1 - above_y) * share, lower = above_y * share;
      store(to.share[0] + at, upper * (1 - above_x)), store(to.share[1] + at, upper * above_x);
      store(to.share[2] + at, lower * (1 - above_x)), store(to.share[3] + at, lower * above_x);
    }
  });
}

// The steps from the first corner of a cell to all four.
struct Corners {
  std::int64_t step[4];
  explicit Corners(const Frame &frame) : step{0, frame.channels, frame.row, frame.row + frame.channels} {}
};

// Σ share · corner, of the channels from `map` on.
template <class T>
[[gnu::always_inline]] inline Vector<T> sample_at(const Points<T> &points, std::int64_t p, const Corners &corners,
                                                  const T *map) {
  const T *at = map + points.at[p];
  return points.share[0][p] * load(at) + points.share[1][p] * load(at + corners.step[1]) +
         points.share[2][p] * load(at + corners.step[2]) + points.share[3][p] * load(at + corners.step[3]);
}

// Samples with positions as lanes, in blocks of two vectors: to[block][channel][lane]. Positions fill whole vectors.
template <class T>
void sample_across(const Points<T> &points, std::int64_t count, const Corners &corners, const T *map,
                   std::int64_t channels, T *to, std::int64_t channel_step, std::int64_t block_step) {
  constexpr int L = lanes<T>;
  for (std::int64_t p = 0; p < count; p += L, to += p / L % 2 ? L : block_step - L)
    for (std::int64_t c = 0; c < channels; c += L) {
      Vector<T> rows[L];
      RECONV_UNROLLED
      for (int i = 0; i < L; ++i)
        rows[i] = sample_at(points, p + i, corners, map + c);
      transpose<T>(rows);
      RECONV_UNROLLED
      for (int i = 0; i < L; ++i)
        if (c + i < channels)
          store(to + (c + i) * channel_step, rows[i]);
    }
}

// Samples with channels as lanes: to[p][channel]. Vectors are written whole: what lies beyond the channels is no sample.
template <class T>
void sample(const Points<T> &points, std::int64_t count, const Corners &corners, const T *map, std::int64_t channels,
            T *to, std::int64_t to_row) {
  for (std::int64_t p = 0; p < count; ++p)
    for (std::int64_t i = 0; i < channels; i += lanes<T>)
      store(to + p * to_row + i, sample_at(points, p, corners, map + i));
}

// map[corner][channel] += share · grad[p][channel]
template <class T>
void scatter(const Points<T> &points, std::int64_t count, const Corners &corners, const T *grad, std::int64_t grad_row,
             std::int64_t channels, T *map) {
  for (std::int64_t p = 0; p < count; ++p)
    for (std::int64_t i = 0; i < channels; i += lanes<T>) {
      const Vector<T> values = load(grad + p * grad_row + i);
      RECONV_UNROLLED
      for (int corner = 0; corner < 4; ++corner) {
        T *to = map + points.at[p] + corners.step[corner] + i;
        const T share = points.share[corner][p];
        if (channels - i >= lanes<T>)
          store(to, load(to) + share * values);
        else // beyond it are channels of others
          store(to, load(to, channels - i) + share * values, channels - i);
      }
    }
}

// The sum of the lanes of each row, by halves as `transpose`.
template <class T> [[gnu::always_inline]] inline Vector<T> sums(const Vector<T> (&given)[lanes<T>]) {
  constexpr int L = lanes<T>;
  Vector<T> rows[L];
  RECONV_UNROLLED
  for (int i = 0; i < L; ++i)
    rows[i] = given[i];
  by_halves<T>([&](int half, const Exchange<T> &which) __attribute__((always_inline)) {
    RECONV_UNROLLED
    for (int i = 0; i < L; ++i)
      if (i % (2 * half) == 0) {
        const Vector<T> a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, which.low) + __builtin_shuffle(a, b, which.high);
      }
  });
  return rows[0];
}

// The gradients to the offsets along y and x and to the mask, of the channels here.
template <class T>
void slopes(const Points<T> &points, std::int64_t count, const Corners &corners, const T *map, const T *grad,
            std::int64_t grad_row, std::int64_t channels, T *to_y, T *to_x, T *to_mask) {
  constexpr int L = lanes<T>;
  for (std::int64_t first = 0; first < count; first += L) {
    const std::int64_t some = smaller(L, count - first);
    Vector<T> products[4][L]; // of gradient and corner, by position
    if (some < L)
      zeros(&products[0][0], 4 * L);
    for (std::int64_t p = 0; p < some; ++p) {
      const T *from = map + points.at[first + p], *values = grad + (first + p) * grad_row;
      Vector<T> acc[4] = {};
      std::int64_t i = 0;
      for (; i + L <= channels; i += L)
        RECONV_UNROLLED
        for (int corner = 0; corner < 4; ++corner)
          acc[corner] += load(values + i) * load(from + corners.step[corner] + i);
      if (i < channels) {
        RECONV_UNROLLED
        for (int corner = 0; corner < 4; ++corner)
          acc[corner] += load(values + i, channels - i) * load(from + corners.step[corner] + i, channels - i);
      }
      RECONV_UNROLLED
      for (int corner = 0; corner < 4; ++corner)
        products[corner][p] = acc[corner];
    }
    const Vector<T> a = sums<T>(products[0]), b = sums<T>(products[1]), c = sums<T>(products[2]),
                    d = sums<T>(products[3]);
    const Vector<T> y = load(points.y + first), x = load(points.x + first), mask = load(points.mask + first);
    const auto put = [&](T *to, Vector<T> v) { some == L ? store(to + first, v) : store(to + first, v, some); };
    put(to_y, mask * ((1 - x) * (c - a) + x * (d - b)));
    put(to_x, mask * ((1 - y) * (b - a) + y * (d - c)));
    put(to_mask, (1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d));
  }
}

} // namespace reconv::RECONV_ISA
