// The direct convolution, compiled once per instruction set.
//
// Weights are read as vectors of neighbouring output channels, and packed first where they do not lie so. A tile of
// positions in a row × vectors of output channels stays in registers while the window passes by: csrc/tile.hpp.
#include "direct.hpp"

#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t MACS_PER_THREAD = 200'000; // less is done before another thread has begun
thread_local Scratch packed_weights, padded_input, unpooled, between[2];

// The window as runs of neighbouring input values: whole kernel rows where nothing lies between their columns.
struct Window {
  std::int64_t rows, columns, run; // kernel rows × jumps in a row × values in a run
  std::int64_t row_step, column_step;
};

template <class T> struct Work {
  const T *x;                         // already padded
  std::int64_t x_n, x_h, x_w;         // strides of the padded input
  std::int64_t out_h, out_w, stride_h, stride_w;
  Window window;
  bool relu;
};

// Packs the `some` output channels of a block as [value of the window][lane]; lanes past them are 0.
template <class T>
void pack_block(const DirectShape &d, const T *from, std::int64_t some, std::int64_t width, T *to) {
  constexpr int L = lanes<T>;
  const std::int64_t c = d.in_channels, window = d.kernel_h * d.kernel_w * c;
  const bool in_order = (c == 1 || d.w_c == 1) && (d.kernel_w == 1 || d.w_w == c) &&
                        (d.kernel_h == 1 || d.w_h == d.kernel_w * c);
  std::int64_t done = 0; // values of the window
  if (in_order)
    for (; done + L <= window; done += L)
      for (std::int64_t lane = 0; lane < width; lane += L) {
        Vector<T> rows[L];
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i)
          rows[i] = lane + i < some ? load(from + (lane + i) * d.w_o + done) : Vector<T>{};
        transpose<T>(rows);
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i)
          store(to + (done + i) * width + lane, rows[i]);
      }
  for (; done < window; ++done) {
    const std::int64_t i = done / c / d.kernel_w, j = done / c % d.kernel_w;
    const T *value = from + i * d.w_h + j * d.w_w + done % c * d.w_c;
    for (std::int64_t lane = 0; lane < some; ++lane)
      to[done * width + lane] = value[lane * d.w_o];
    zeros(to + done * width + some, width - some);
  }
}

// Whether w lies as [value of the window][output channel] and fills whole blocks, so that it is read where it is.
bool lies_ready(const DirectShape &d, std::int64_t width) {
  const std::int64_t o = d.out_channels, c = d.in_channels;
  return d.w_o == 1 && o % width == 0 && (c == 1 || d.w_c == o) && (d.kernel_w == 1 || d.w_w == c * o) &&
         (d.kernel_h == 1 || d.w_h == d.kernel_w * c * o);
}

// The input with zeros around it, or the input itself where none are wanted.
template <class T> Work<T> padded(const DirectShape &d, const T *x) {
  Work<T> work{.x = x, .x_n = d.x_n, .x_h = d.x_h, .x_w = d.x_w,
               .out_h = d.out_h, .out_w = d.out_w, .stride_h = d.stride_h, .stride_w = d.stride_w, .window = {},
               .relu = d.relu != 0};
  if (d.top || d.bottom || d.left || d.right) {
    const std::int64_t c = d.in_channels, h = d.height + d.top + d.bottom, w = d.width + d.left + d.right;
    T *to = padded_input.of<T>(d.batch * h * w * c);
    if (!(work.x = to))
      return work;
    work.x_n = h * w * c, work.x_h = w * c, work.x_w = c;
    for (std::int64_t n = 0; n < d.batch; ++n)
      for (std::int64_t i = -d.top; i < d.height + d.bottom; ++i) {
        if (i < 0 || i >= d.height) {
          to = zeros(to, w * c);
          continue;
        }
        const T *from = x + n * d.x_n + i * d.x_h;
        to = zeros(to, d.left * c);
        if (d.x_w == c)
          to = copied(from, d.width * c, to);
        else
          for (std::int64_t j = 0; j < d.width; ++j)
            to = copied(from + j * d.x_w, c, to);
        to = zeros(to, d.right * c);
      }
  }
  const bool whole_rows = d.dilation_w == 1 && work.x_w == d.in_channels;
  work.window = {d.kernel_h, whole_rows ? 1 : d.kernel_w, whole_rows ? d.kernel_w * d.in_channels : d.in_channels,
                 d.dilation_h * work.x_h, d.dilation_w * work.x_w};
  const bool pointwise = d.kernel_h == 1 && d.kernel_w == 1 && d.stride_h == 1 && d.stride_w == 1;
  if (pointwise && d.out_w < 2 * positions<1> && work.x_h == d.width * work.x_w)
    work.out_h = 1, work.out_w = d.out_h * d.out_w; // short rows of 1×1 windows are one long row
  return work;
}

// How many vectors of output channels a block has. With `apart`, so few that each thread has blocks of its own.
std::int64_t vectors_of(const DirectShape &d, std::int64_t all, bool apart) {
  const std::int64_t threads = apart ? d.threads : 1;
  const std::int64_t least = blocks_of(all, d.kernel_h * d.kernel_w * d.in_channels * RECONV_VECTOR_BYTES);
  return divided_up(all, smaller(all, divided_up(least, threads) * threads));
}

template <class T> int one(const DirectShape &d, const T *x, const T *w, const T *b, T *y, Parallel parallel) {
  const Work<T> work = padded(d, x);
  if (!work.x)
    return 1;
  const std::int64_t window = d.kernel_h * d.kernel_w * d.in_channels, high = d.batch * work.out_h;
  const std::int64_t vectors = divided_up(d.out_channels, lanes<T>);
  // What one core has written or packed comes slowly to another: threads share the smaller of weights and input.
  const bool apart = d.threads > high || window * d.out_channels > d.batch * d.height * d.width * d.in_channels;
  const std::int64_t V = vectors_of(d, vectors, apart), blocks = divided_up(vectors, V), width = V * lanes<T>;
  const bool ready = lies_ready(d, width);
  const RunStrip<T> run = strip_of<T>(V);
  int failed = 0;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    const Window &at = work.window;
    Strip<T> strip{};
    strip.planes = 1, strip.rows = at.rows, strip.columns = at.columns, strip.run = at.run;
    strip.row_step = at.row_step, strip.column_step = at.column_step;
    strip.x_step = work.stride_w * work.x_w, strip.y_step = d.out_channels, strip.relu = work.relu;
    T bias[MOST_VECTORS * lanes<T>], *packed = ready ? nullptr : packed_weights.of<T>(window * width);
    if (!ready && !packed)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    strip.bias = bias, strip.value = ready ? d.out_channels : width;
    strip.weight_row = at.columns * at.run * strip.value;
    for (std::int64_t job = begin; job < end; ++job) { // blocks outermost: their weights stay in the cache
      const std::int64_t block = job / high, n = job % high / work.out_h, h = job % high % work.out_h;
      const std::int64_t first = block * width, left = d.out_channels - first;
      if (job == begin || job % high == 0) {
        zeros(bias, width);
        if (b)
          copied(b + first, smaller(width, left), bias);
        if (!ready)
          pack_block(d, w + first * d.w_o, smaller(width, left), width, packed);
        strip.weights = ready ? w + first : packed, strip.left = left;
      }
      run(strip, work.x + n * work.x_n + h * work.stride_h * work.x_h,
          y + (n * work.out_h + h) * work.out_w * d.out_channels + first, work.out_w);
    }
  };
  const std::int64_t macs = work.out_w * window * width; // of one job
  parallel(d.threads, high * blocks, larger(1, MACS_PER_THREAD / larger(1, macs)), &called<decltype(some)>, &some);
  return failed;
}

// The largest of each square of outputs. As torch has it, NaN is larger than any, and a border too thin is dropped.
template <class T> void pool(const DirectShape &d, const T *from, T *to, Parallel parallel) {
  const std::int64_t side = d.pool, c = d.out_channels, high = d.out_h / side, wide = d.out_w / side;
  const auto some = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t j = 0; j < wide; ++j) {
        const T *corner = from + ((row / high * d.out_h + row % high * side) * d.out_w + j * side) * c;
        T *most = to + (row * wide + j) * c;
        copied(corner, c, most);
        for (std::int64_t at = 1; at < side * side; ++at) {
          const T *next = corner + (at / side * d.out_w + at % side) * c;
          for (std::int64_t o = 0; o < c; ++o)
            most[o] = next[o] > most[o] || next[o] != next[o] ? next[o] : most[o];
        }
      }
  };
  parallel(d.threads, d.batch * high, larger(1, MACS_PER_THREAD / larger(1, wide * side * side * c)),
           &called<decltype(some)>, &some);
}

} // namespace

template <class T>
int direct(std::int64_t count, const DirectShape *shapes, const T *const *tensors, Parallel parallel) {
  const T *x = tensors[0];
  for (std::int64_t i = 0; i < count; ++i) {
    const DirectShape &d = shapes[i];
    const std::int64_t size = d.batch * d.out_h * d.out_w * d.out_channels;
    T *y = i + 1 == count ? const_cast<T *>(tensors[1]) : between[i % 2].of<T>(size);
    T *convolved = d.pool > 1 ? unpooled.of<T>(size) : y;
    if (!y || !convolved || one(d, x, tensors[2 + 2 * i], tensors[3 + 2 * i], convolved, parallel))
      return 1;
    if (d.pool > 1)
      pool(d, convolved, y, parallel);
    x = y;
  }
  return 0;
}

template int direct<float>(std::int64_t, const DirectShape *, const float *const *, Parallel);
template int direct<double>(std::int64_t, const DirectShape *, const double *const *, Parallel);

} // namespace reconv::RECONV_ISA
