// The weight gradient of convolutions with few channels a group that lie side by side: planar_lanes.hpp.
//
// A tile of the sums of some taps, and of each r of every tap, stays in registers while positions pass by: an output's
// gradient is moved to the lanes of the inputs that it meets. Rows of x are packed with the zeros around them.
#include "planar_lanes.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr Index MACS_PER_THREAD = 200'000; // less is done before another thread has begun
constexpr Index LEAST_JOBS = 16;           // fewer are cut into parts, whatever the threads are
constexpr Index AT_ONCE = 128;             // positions, whose rows pass by for each vector of channels

// How many taps a tile has: sums, an input and the outputs fit the registers.
template <int G> constexpr int most_taps = RECONV_REGISTERS == 16 ? (G == 2 ? 4 : G == 4 ? 2 : 1) : G == 8 ? 3 : 5;
constexpr int MOST_TAPS = 5;

thread_local Scratch taps_memory, packed_x, packed_y, all_sums, parts_memory;

// Positions in rows: steps and pitches are of values.
template <class T> struct Run {
  const T *x, *y;
  Index rows, wide, x_step, x_pitch;
};

// sums[tap][r] += Σ y · x at the tap's offset, where lane l has the output l ^ r and the input l.
template <class T, int G, int R> void tile(const Run<T> &at, const Index *offsets, Vector<T> *sums) {
  constexpr int L = lanes<T>;
  Vector<T> acc[R][G];
  unrolled<R>([&](auto t) { unrolled<G>([&](auto r) { acc[t][r] = Vector<T>{}; }); });
  const T *y = at.y, *from[R];
  unrolled<R>([&](auto t) { from[t] = at.x + offsets[t] * L; });
  Index row = 0;
  for (Index i = 0; i < at.rows; ++i, row += at.x_pitch)
    for (Index j = 0, x = row; j < at.wide; ++j, x += at.x_step, y += L) {
      const Vector<T> outputs = load(y);
      Vector<T> values[R];
      unrolled<R>([&](auto t) { values[t] = load(from[t] + x); });
      unrolled<G>([&](auto r) {
        const Vector<T> moved = swapped<r, T>(outputs);
        unrolled<R>([&](auto t) { acc[t][r] += moved * values[t]; });
      });
    }
  unrolled<R>([&](auto t) { unrolled<G>([&](auto r) { sums[t * G + r] += acc[t][r]; }); });
}

template <class T> struct Tiles {
  int most; // taps
  void (*of[MOST_TAPS])(const Run<T> &, const Index *, Vector<T> *);
};
template <class T, int G, int... R> constexpr Tiles<T> tiles_of(std::integer_sequence<int, R...>) {
  return {sizeof...(R), {&tile<T, G, R + 1>...}}; // by R − 1
}
template <class T> Tiles<T> tiles_for(Index channels) {
  if constexpr (lanes<T> >= 8)
    if (channels == 8)
      return tiles_of<T, 8>(std::make_integer_sequence<int, most_taps<8>>{});
  if constexpr (lanes<T> >= 4)
    if (channels == 4)
      return tiles_of<T, 4>(std::make_integer_sequence<int, most_taps<4>>{});
  return tiles_of<T, 2>(std::make_integer_sequence<int, most_taps<2>>{});
}

// What is computed, the same for all threads.
struct Plan {
  Walk walks[3];
  Cut cut;
  Taps taps;
  Index channels, groups; // of a group; of a vector
  Index window, parts;    // taps; of each block
};

Plan plan_of(const ConvShape &shape, int lanes_) {
  Plan p{};
  p.window = shape.axes[0].kernel * shape.axes[1].kernel * shape.axes[2].kernel;
  p.channels = shape.in_channels, p.groups = lanes_ / p.channels;
  for (int a = 0; a < 3; ++a)
    p.walks[a] = walk_of(shape.axes[a], shape.pass);
  p.cut = cut_of(p.walks, divided_up(shape.groups, p.groups), 1, AT_ONCE);
  p.parts = larger(1, smaller(shape.batch * p.cut.strips, divided_up(LEAST_JOBS, p.cut.blocks)));
  return p;
}

// Channels of a job.
struct Job {
  Index channel, channels;
};

template <class S> struct Tensors {
  const S *x, *y;
};

// A strip of one sample: adds to the sums of a job.
template <class S>
void add_strip(const ConvShape &shape, const Plan &p, const Tiles<Computed<S>> &tiles, const Tensors<S> &tensors,
               const Job &job, Index place, Computed<S> *x, Computed<S> *y, Vector<Computed<S>> *sums) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  const Index n = place / p.cut.strips, first = place % p.cut.strips * p.cut.strip;
  const int axis = p.cut.axis;
  Layout of_x = p.cut.layout;
  of_x.lines[axis].lowest += p.walks[axis].step * first;
  Packed<S> packed{of_x, tensors.x + n * shape.x.batch + job.channel, shape.x, job.channels, x};
  Index begin[3] = {}, count[3] = {p.walks[0].positions, p.walks[1].positions, p.walks[2].positions};
  begin[axis] = first, count[axis] = smaller(p.cut.strip, count[axis] - first);
  const Index rows = of_x.lines[1].length, pitch = of_x.pitch() * L;
  for (Index d = 0; d < count[0]; ++d)
    for (Index h = 0; h < count[1]; h += p.cut.high) {
      const Index high = smaller(p.cut.high, count[1] - h), from[3] = {begin[0] + d, begin[1] + h, begin[2]};
      packed.up_to((d * p.walks[0].step + p.walks[0].span - 1) * rows + (h + high - 1) * p.walks[1].step +
                   p.walks[1].span);
      Layout of_y{{}, 0, high * count[2]};
      for (int a = 0; a < 3; ++a)
        of_y.lines[a] = {1, 1, a == 0 ? 1 : a == 1 ? high : count[2], from[a], 0, shape.axes[a].output};
      Packed<S>{of_y, tensors.y + n * shape.y.batch + job.channel, shape.y, job.channels, y}.up_to(high);
      Run<T> run{x + (d * p.walks[0].step * rows + h * p.walks[1].step) * pitch, y, high, count[2],
                 p.walks[2].step * L, p.walks[1].step * pitch};
      Vector<T> *own = sums;
      for (Index c = 0; c < job.channels; c += L, own += p.window * p.channels) {
        Index parts = divided_up(p.window, tiles.most);
        for (Index t = 0, some; t < p.window; t += some, --parts) {
          some = divided_up(p.window - t, parts);
          tiles.of[some - 1](run, p.taps.offsets + t, own + t * p.channels);
        }
        run.x += of_x.plane * L, run.y += of_y.plane * L;
      }
    }
}

// The sums of a job, [vector][tap][r][lane], to the weights.
template <class S>
void put(const ConvShape &shape, const Plan &p, const Job &job, const Vector<Computed<S>> *sums, S *w) {
  for (Index i = 0; i < job.channels; ++i)
    for (Index o = 0; o < p.channels; ++o) {
      const Index lane = i % lanes<Computed<S>>, c = i % p.channels, group = (job.channel + i) / p.channels;
      const auto *of_vector = sums + i / lanes<Computed<S>> * p.window * p.channels;
      S *to = w + (group * p.channels + o) * shape.w.batch + c * shape.w.channel;
      for (Index t = 0; t < p.window; ++t) {
        const Computed<S> sum = of_vector[t * p.channels + (o ^ c)][lane];
        if constexpr (std::is_same_v<S, bf16>) {
          const auto half = narrowed(Vector<float>{} + sum);
          std::memcpy(to + p.taps.weights[t], &half, sizeof(S));
        } else
          to[p.taps.weights[t]] = sum;
      }
    }
}

} // namespace

template <class S> int planar_lanes_weights(const ConvShape &shape, const S *x, S *w, const S *y, Parallel parallel) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  Plan p = plan_of(shape, L);
  if (!list_taps(shape, p.walks, p.cut.layout, taps_memory, p.taps))
    return 1;
  const Cut &cut = p.cut;
  const Index places = shape.batch * cut.strips, most = cut.block * p.window * p.channels; // vectors of sums of a job
  const Tiles<T> tiles = tiles_for<T>(p.channels);
  auto *parts = p.parts > 1 ? parts_memory.of<Vector<T>>(cut.blocks * p.parts * most) : nullptr;
  if (p.parts > 1 && !parts)
    return 1;
  const auto job_of = [&](Index block) {
    const Index first = block * cut.block * L;
    return Job{first, smaller(cut.block * L, shape.groups * p.channels - first)};
  };
  int failed = 0;
  const auto some = [&](Index begin, Index end) {
    T *planes = packed_x.of<T>(cut.block * cut.layout.plane * L + L);
    T *rows = packed_y.of<T>(cut.block * cut.high * p.walks[2].positions * L + L);
    auto *own = all_sums.of<Vector<T>>(most);
    if (!planes || !rows || !own)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    for (Index i = begin; i < end; ++i) {
      const Index part = i % p.parts;
      const Job job = job_of(i / p.parts);
      Vector<T> *sums = parts ? parts + i * most : own;
      for (Index k = 0; k < most; ++k)
        sums[k] = Vector<T>{};
      for (Index place = places * part / p.parts; place < places * (part + 1) / p.parts; ++place)
        add_strip<S>(shape, p, tiles, {x, y}, job, place, planes, rows, sums);
      if (!parts)
        put<S>(shape, p, job, sums, w);
    }
  };
  const Index positions = shape.batch * p.walks[0].positions * p.walks[1].positions * p.walks[2].positions;
  const Index macs = larger(1, most * L * positions / p.parts);
  parallel(shape.threads, cut.blocks * p.parts, larger(1, MACS_PER_THREAD / macs), &called<decltype(some)>, &some);
  for (Index block = 0; parts && !failed && block < cut.blocks; ++block) {
    Vector<T> *sums = parts + block * p.parts * most;
    for (Index part = 1; part < p.parts; ++part)
      for (Index k = 0; k < most; ++k)
        sums[k] += sums[part * most + k];
    put<S>(shape, p, job_of(block), sums, w);
  }
  return failed;
}

template int planar_lanes_weights<float>(const ConvShape &, const float *, float *, const float *, Parallel);
template int planar_lanes_weights<double>(const ConvShape &, const double *, double *, const double *, Parallel);
template int planar_lanes_weights<bf16>(const ConvShape &, const bf16 *, bf16 *, const bf16 *, Parallel);

} // namespace reconv::RECONV_ISA
