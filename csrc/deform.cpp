// The deformable convolution, compiled once per instruction set.
//
// For a stretch of positions, what the kernel's points see becomes the columns of a matrix, as far as the cache holds
// it, in the weights' order: so these are read where they are, and the product lies as the output does.
#include "product.hpp"
#include "samples.hpp"
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t MACS_PER_THREAD = 200'000; // less is done before another thread has begun
constexpr std::int64_t MOST_ROWS_OF_MATRIX = 1024; // at a time: with a stretch of columns they fit the second cache
constexpr std::int64_t OUTPUTS = 24;              // channels for which the matrix is read once: their weights stay near

thread_local Scratch maps, wide_weights, matrices, products;

// What all threads share.
template <class S> struct Job {
  using T = Computed<S>;
  const DeformShape &d;
  const DeformTensors &t;
  Frame frame{d};
  std::int64_t taps = d.axes[0].kernel * d.axes[1].kernel, plane = d.axes[0].output * d.axes[1].output;
  std::int64_t total = d.batch * plane, in = d.in_channels / d.groups, out = d.out_channels / d.groups;
  const T *map = nullptr, *weights = nullptr;
};

// Positions begin … begin + count, and of each group the output channels first … last.
template <class S>
bool stretch_of(const Job<S> &job, std::int64_t begin, std::int64_t count, std::int64_t first, std::int64_t last) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  constexpr std::int64_t Y_ROW = STRETCH + L; // an odd number of lines: rows do not share sets
  const DeformShape &d = job.d;
  const std::int64_t taps = job.taps, c = d.in_channels, rows = last - first, of_offsets = c / d.offset_groups;
  const std::int64_t some = smaller(c, larger(1, MOST_ROWS_OF_MATRIX / taps / L) * L), block = some * taps * 2 * L;
  T *matrix = matrices.of<T>(STRETCH / (2 * L) * block), *y = products.of<T>(d.groups * rows * Y_ROW);
  if (!matrix || !y)
    return false;
  const Corners corners(job.frame);
  const Stretch<T> stretch(d, begin, count);
  Points<T> points;
  const S *bias = static_cast<const S *>(job.t.bias);
  for (std::int64_t o = 0; o < d.groups * rows; ++o) {
    const Vector<T> value = Vector<T>{} + (bias ? widened(bias[o / rows * job.out + first + o % rows]) : T(0));
    for (std::int64_t p = 0; p < count; p += L)
      store(y + o * Y_ROW + p, value);
  }
  for (std::int64_t channel = 0; channel < c; channel += some) {
    const std::int64_t end = smaller(c, channel + some);
    for (std::int64_t tap = 0; tap < taps; ++tap)
      each_group(channel, end, of_offsets, [&](auto group, auto at, auto channels) {
        locate(d, job.frame, stretch, static_cast<const S *>(job.t.offset), static_cast<const S *>(job.t.mask), group,
               tap, points);
        sample_across(points, count, corners, job.map + at, channels, matrix + ((at - channel) * taps + tap) * 2 * L,
                      taps * 2 * L, block);
      });
    each_group(channel, end, job.in, [&](auto group, auto at, auto channels) {
      for (std::int64_t o = first; o < last; o += OUTPUTS)
        for (std::int64_t p = 0; p < count; p += 2 * L)
          product<T>({.a = job.weights + ((group * job.out + o) * job.in + at % job.in) * taps, .a_row = job.in * taps,
                      .a_step = 1, .b = matrix + p / (2 * L) * block + (at - channel) * taps * 2 * L, .b_row = 2 * L,
                      .steps = channels * taps, .c = y + (group * rows + o - first) * Y_ROW + p, .c_row = Y_ROW,
                      .add = true},
                     smaller(OUTPUTS, last - o), count - p > L ? 2 : 1);
    });
  }
  each_image(begin, count, job.plane, [&](auto n, auto at, auto positions, auto done) {
    for (std::int64_t o = 0; o < d.groups * rows; ++o) {
      const std::int64_t output = n * d.out_channels + o / rows * job.out + first + o % rows;
      write_row(y + o * Y_ROW + done, 0, positions, 1, static_cast<S *>(job.t.y) + output * job.plane + at, 1, 0);
    }
  });
  return true;
}

} // namespace

template <class S> int deform(const DeformShape &d, const DeformTensors &t, Parallel parallel) {
  using T = Computed<S>;
  Job<S> job{.d = d, .t = t};
  T *map = maps.of<T>(job.frame.template size<T>());
  if (!(job.map = map))
    return 1;
  in_parallel(parallel, d.threads, job.frame.rows, MACS_PER_THREAD / job.frame.row, [&](auto begin, auto end) {
    frame_rows(d, job.frame, static_cast<const S *>(t.x), map, begin, end);
  });
  const std::int64_t row = job.in * job.taps; // of the weights
  if constexpr (std::is_same_v<S, T>)
    job.weights = static_cast<const T *>(t.w);
  else {
    T *wide = wide_weights.of<T>(d.out_channels * row);
    if (!(job.weights = wide))
      return 1;
    in_parallel(parallel, d.threads, d.out_channels, MACS_PER_THREAD / row, [&](auto begin, auto end) {
      converted(static_cast<const S *>(t.w) + begin * row, (end - begin) * row, wide + begin * row);
    });
  }
  // As many stretches as there are threads; of a small map, output channels are shared out as well.
  const std::int64_t most = divided_up(job.total, larger(d.threads, divided_up(job.total, STRETCH)));
  const std::int64_t length = divided_up(most, lanes<T>) * lanes<T>, stretches = divided_up(job.total, length);
  const std::int64_t parts = smaller(divided_up(job.out, OUTPUTS), divided_up(d.threads, stretches));
  const std::int64_t macs = length * row * d.out_channels / parts;
  int failed = 0;
  in_parallel(parallel, d.threads, stretches * parts, MACS_PER_THREAD / macs, [&](auto begin, auto end) {
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t first = at / parts * length, part = at % parts;
      if (!stretch_of(job, first, smaller(length, job.total - first), job.out * part / parts,
                      job.out * (part + 1) / parts))
        __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    }
  });
  return failed;
}

template int deform<float>(const DeformShape &, const DeformTensors &, Parallel);
template int deform<double>(const DeformShape &, const DeformTensors &, Parallel);
template int deform<bf16>(const DeformShape &, const DeformTensors &, Parallel);

} // namespace reconv::RECONV_ISA
