// The gradients of the deformable convolution, compiled once per instruction set.
//
// A thread owns a block of input channels: what the weights make of the gradient to the output is added to its channels
// of the map, in one order, whatever the number of threads. Samples are computed again, for one kernel point at a time.
#include "product.hpp"
#include "samples.hpp"
#include "tile.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr std::int64_t MACS_PER_THREAD = 200'000; // less is done before another thread has begun
constexpr std::int64_t MOST_BYTES = 700'000;      // of the second cache, for weights

thread_local Scratch maps, map_grads, output_grads, slopes_of_pieces, block_memory, turned;

// What all threads share.
template <class S> struct Job {
  using T = Computed<S>;
  static constexpr int L = lanes<T>;
  static constexpr std::int64_t ROW = 3 * L; // of samples and their gradients: vectors may reach beyond a block
  const DeformShape &d;
  const DeformTensors &t;
  Frame frame{d};
  std::int64_t taps = d.axes[0].kernel * d.axes[1].kernel, plane = d.axes[0].output * d.axes[1].output;
  std::int64_t total = d.batch * plane;
  std::int64_t in = d.in_channels / d.groups, out = d.out_channels / d.groups;
  std::int64_t of_offsets = d.in_channels / d.offset_groups;
  // Channels of a block: two vectors, or one where the weights of two and their gradients are too many for the cache.
  std::int64_t of_block = 4 * L * taps * out * static_cast<std::int64_t>(sizeof(T)) > MOST_BYTES ? L : 2 * L;
  std::int64_t blocks = divided_up(d.in_channels, of_block);
  T *map = nullptr, *map_grad = nullptr, *grad = nullptr, *slopes = nullptr; // grad: [position][output channel]

  bool wants_slopes() const { return t.offset_grad || t.mask_grad; }

  bool begin() {
    grad = output_grads.of<T>((total + MOST_ROWS) * d.out_channels + L + MOST_ROWS);
    map = maps.of<T>(frame.size<T>());
    if (t.x_grad)
      map_grad = map_grads.of<T>(frame.size<T>());
    if (wants_slopes())
      slopes = slopes_of_pieces.of<T>((blocks + d.offset_groups) * 3 * taps * total);
    return grad && map && (map_grad || !t.x_grad) && (slopes || !wants_slopes());
  }

  // Of the channels that a block and an offset group share: along y, along x and to the mask.
  T *slopes_at(std::int64_t block, std::int64_t group, int which, std::int64_t tap) const {
    return slopes + (((block + group) * 3 + which) * taps + tap) * total;
  }
};

template <class S> std::int64_t padded(std::int64_t channels) {
  return divided_up(channels, Job<S>::L) * Job<S>::L;
}

// The memory of one thread: weights and their gradients as [group][tap][output channel][lane]; samples of one kernel
// point, and the gradients to them, as [position][channel].
template <class S> struct BlockMemory {
  using T = Computed<S>;
  T *weights, *weight_grads, *samples, *sample_grads;
  std::int64_t size = 0; // of the weights

  BlockMemory(const Job<S> &job, std::int64_t begin, std::int64_t end) {
    each_group(begin, end, job.in,
               [&](auto, auto, auto channels) { size += job.taps * job.out * padded<S>(channels); });
    const std::int64_t rows = (STRETCH + MOST_ROWS) * Job<S>::ROW;
    weights = block_memory.of<T>(2 * size + 2 * rows);
    weight_grads = weights + size, samples = weight_grads + size, sample_grads = samples + rows;
  }
};

// The weights of other output channels lie far away: the next ones are asked for ahead.
template <class T> void prefetch(const T *from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 64 / static_cast<int>(sizeof(T)))
    __builtin_prefetch(from + i);
}

template <class S>
void pack(const Job<S> &job, std::int64_t begin, std::int64_t end, Computed<S> *to) {
  const S *w = static_cast<const S *>(job.t.w);
  const std::int64_t row = job.in * job.taps;
  each_group(begin, end, job.in, [&](auto group, auto first, auto channels) {
    const std::int64_t width = padded<S>(channels);
    const S *from = w + group * job.out * row + first % job.in * job.taps;
    if (width > channels)
      zeros(to, job.taps * job.out * width);
    for (std::int64_t o = 0; o < job.out; ++o) {
      if (o + 2 < job.out)
        prefetch(from + (o + 2) * row, channels * job.taps);
      read_row(from + o * row, job.taps, 1, channels, job.taps, to + o * width, job.out * width);
    }
    to += job.taps * job.out * width;
  });
}

// False where memory ran out.
template <class S>
bool unpack(const Job<S> &job, std::int64_t begin, std::int64_t end, const Computed<S> *from) {
  S *w = static_cast<S *>(job.t.w_grad), *near = turned.of<S>(job.of_block * job.taps);
  if (!near)
    return false;
  const std::int64_t row = job.in * job.taps;
  each_group(begin, end, job.in, [&](auto group, auto first, auto channels) {
    const std::int64_t width = padded<S>(channels);
    for (std::int64_t o = 0; o < job.out; ++o) { // short pieces of lines are written where it is quick
      write_row(from + o * width, job.out * width, channels, job.taps, near, job.taps, 1);
      copied(near, channels * job.taps, w + (group * job.out + o) * row + first % job.in * job.taps);
    }
    from += job.taps * job.out * width;
  });
  return true;
}

// One kernel point at a stretch of positions.
template <class S>
void point(const Job<S> &job, const BlockMemory<S> &memory, const Stretch<Computed<S>> &stretch, std::int64_t block,
           std::int64_t begin, std::int64_t end, std::int64_t tap) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  constexpr std::int64_t ROW = Job<S>::ROW;
  const std::int64_t count = stretch.count, outputs = job.d.out_channels;
  const Corners corners(job.frame);
  const T *grad = job.grad + stretch.begin * outputs;
  if (job.t.x_grad || job.wants_slopes()) { // in order: vectors reach into the next channels
    const T *weights = memory.weights;
    each_group(begin, end, job.in, [&](auto group, auto first, auto channels) {
      const std::int64_t width = padded<S>(channels);
      product<T>({.a = grad + group * job.out, .a_row = outputs, .a_step = 1,
                  .b = weights + tap * job.out * width, .b_row = width, .steps = job.out,
                  .c = memory.sample_grads + first - begin, .c_row = ROW, .add = false},
                 count, width / L);
      weights += job.taps * job.out * width;
    });
  }
  Points<T> points;
  each_group(begin, end, job.of_offsets, [&](auto group, auto first, auto channels) {
    const T *map = job.map + first, *grads = memory.sample_grads + first - begin;
    locate(job.d, job.frame, stretch, static_cast<const S *>(job.t.offset), static_cast<const S *>(job.t.mask), group,
           tap, points);
    if (job.t.w_grad)
      sample(points, count, corners, map, channels, memory.samples + first - begin, ROW);
    if (job.wants_slopes()) {
      const auto to = [&](int which) { return job.slopes_at(block, group, which, tap) + stretch.begin; };
      slopes(points, count, corners, map, grads, ROW, channels, to(0), to(1), to(2));
    }
    if (job.t.x_grad)
      scatter(points, count, corners, grads, ROW, channels, job.map_grad + first);
  });
  if (job.t.w_grad) {
    T *to = memory.weight_grads;
    each_group(begin, end, job.in, [&](auto group, auto first, auto channels) {
      const std::int64_t width = padded<S>(channels);
      product<T>({.a = grad + group * job.out, .a_row = 1, .a_step = outputs,
                  .b = memory.samples + first - begin, .b_row = ROW, .steps = count,
                  .c = to + tap * job.out * width, .c_row = width, .add = stretch.begin > 0},
                 job.out, width / L);
      to += job.taps * job.out * width;
    });
  }
}

// All that a block of channels gives. False where memory ran out.
template <class S> bool block_of(const Job<S> &job, std::int64_t block) {
  const std::int64_t begin = block * job.of_block, end = smaller(job.d.in_channels, begin + job.of_block);
  const BlockMemory<S> memory(job, begin, end);
  if (!memory.weights)
    return false;
  pack(job, begin, end, memory.weights);
  for (std::int64_t at = 0; at < job.total; at += STRETCH) {
    const Stretch<Computed<S>> stretch(job.d, at, smaller(STRETCH, job.total - at));
    for (std::int64_t tap = 0; tap < job.taps; ++tap)
      point(job, memory, stretch, block, begin, end, tap);
  }
  return !job.t.w_grad || unpack(job, begin, end, memory.weight_grads);
}

// The gradients to the offsets and the mask of one kernel point of all images, from those of the blocks. An offset that
// was cut off at FARTHEST, or is NaN, has none.
template <class S> void point_slopes(const Job<S> &job, std::int64_t group, std::int64_t tap) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  const std::int64_t first = group * job.of_offsets / job.of_block;
  const std::int64_t last = ((group + 1) * job.of_offsets - 1) / job.of_block;
  const Vector<T> most = Vector<T>{} + T(FARTHEST);
  for (std::int64_t n = 0; n < job.d.batch; ++n)
    for (int which = 0; which < 3; ++which) { // y, x, mask
      const std::int64_t at = (n * job.d.offset_groups + group) * job.taps + tap;
      const std::int64_t place = which < 2 ? (2 * at + which) * job.plane : at * job.plane;
      const S *offset = static_cast<const S *>(job.t.offset) + place;
      S *to = static_cast<S *>(which < 2 ? job.t.offset_grad : job.t.mask_grad);
      if (!to)
        continue;
      for (std::int64_t i = 0; i < job.plane; i += L) {
        const std::int64_t left = job.plane - i;
        Vector<T> sum = load_of(job.slopes_at(first, group, which, tap) + n * job.plane + i, left);
        for (std::int64_t block = first + 1; block <= last; ++block)
          sum += load_of(job.slopes_at(block, group, which, tap) + n * job.plane + i, left);
        if (which < 2) {
          const Vector<T> given = load_of(offset + i, left);
          sum = given >= -most ? given <= most ? sum : Vector<T>{} : Vector<T>{};
        }
        left >= L ? store(to + place + i, sum) : store(to + place + i, sum, left);
      }
    }
}

// The sums of the gradient over all positions, of the vectors begin … end of output channels.
template <class S> void bias_sums(const Job<S> &job, std::int64_t begin, std::int64_t end) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  for (std::int64_t o = begin * L; o < smaller(job.d.out_channels, end * L); o += L) {
    Vector<T> all{};
    for (std::int64_t at = 0; at < job.total; at += STRETCH) { // a sum of sums is more exact
      Vector<T> some{};
      for (std::int64_t p = at; p < smaller(job.total, at + STRETCH); ++p)
        some += load(job.grad + p * job.d.out_channels + o);
      all += some;
    }
    S *to = static_cast<S *>(job.t.bias_grad) + o;
    const std::int64_t left = job.d.out_channels - o;
    left >= L ? store(to, all) : store(to, all, left);
  }
}

// The gradient to the output with its channels side by side, the maps, and room for what is added up.
template <class S> void prepare(const Job<S> &job, Parallel parallel) {
  using T = Computed<S>;
  const std::int64_t outputs = job.d.out_channels;
  const S *from = static_cast<const S *>(job.t.y_grad);
  in_parallel(parallel, job.d.threads, job.total, MACS_PER_THREAD / outputs, [&](auto begin, auto end) {
    each_image(begin, end - begin, job.plane, [&](auto n, auto at, auto some, auto done) {
      read_row(from + n * outputs * job.plane + at, job.plane, 1, outputs, some, job.grad + (begin + done) * outputs,
               outputs);
    });
  });
  zeros(job.grad + job.total * outputs, MOST_ROWS * outputs + lanes<T> + MOST_ROWS);
  in_parallel(parallel, job.d.threads, job.frame.rows, MACS_PER_THREAD / job.frame.row, [&](auto begin, auto end) {
    frame_rows(job.d, job.frame, static_cast<const S *>(job.t.x), job.map, begin, end);
    const std::int64_t last = end == job.frame.rows ? job.frame.template size<T>() : end * job.frame.row;
    if (job.map_grad)
      zeros(job.map_grad + begin * job.frame.row, last - begin * job.frame.row);
  });
}

} // namespace

template <class S> int deform_gradients(const DeformShape &d, const DeformTensors &t, Parallel parallel) {
  Job<S> job{.d = d, .t = t};
  if (!job.begin())
    return 1;
  prepare(job, parallel);
  int failed = 0;
  if (t.x_grad || t.w_grad || job.wants_slopes())
    in_parallel(parallel, d.threads, job.blocks, 1, [&](auto begin, auto end) {
      for (std::int64_t block = begin; block < end; ++block)
        if (!block_of(job, block))
          __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    });
  if (failed)
    return 1;
  if (job.wants_slopes())
    in_parallel(parallel, d.threads, d.offset_groups * job.taps, MACS_PER_THREAD / job.total,
                [&](auto begin, auto end) {
                  for (std::int64_t at = begin; at < end; ++at)
                    point_slopes(job, at / job.taps, at % job.taps);
                });
  if (t.x_grad)
    in_parallel(parallel, d.threads, d.batch * job.frame.height, MACS_PER_THREAD / job.frame.row,
                [&](auto begin, auto end) {
                  unframe_rows(d, job.frame, job.map_grad, static_cast<S *>(t.x_grad), begin, end);
                });
  if (t.bias_grad)
    in_parallel(parallel, d.threads, divided_up(d.out_channels, lanes<Computed<S>>), MACS_PER_THREAD / job.total,
                [&](auto begin, auto end) { bias_sums(job, begin, end); });
  return 0;
}

template int deform_gradients<float>(const DeformShape &, const DeformTensors &, Parallel);
template int deform_gradients<double>(const DeformShape &, const DeformTensors &, Parallel);
template int deform_gradients<bf16>(const DeformShape &, const DeformTensors &, Parallel);

} // namespace reconv::RECONV_ISA
