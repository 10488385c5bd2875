// The weight gradient of convolutions with few channels a group: vectors of neighbouring positions.
//
// A tile of O output channels × R taps stays in registers while the positions of a strip pass by; what its lanes hold
// is summed at the end. Where a group has one output, the O outputs are kernel rows: the same values of the input meet
// rows of the output's gradient that are a row apart.
//
// The gradient is laid out in rows as long as the input's, with zeros between: they meet values that belong to other
// positions. Where one of those is not finite, its products are not zero, and a slower way is taken.
#include "planar.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr Index MACS_PER_THREAD = 200'000; // less is done before another thread has begun
constexpr Index STRIP = 2048;              // positions, so that a few planes fit the first cache
constexpr Index SUMS = 4096;               // vectors of sums, which fit the second cache
constexpr Index LEAST_JOBS = 16;           // fewer are cut into parts, whatever the threads are
constexpr int MOST_OUTPUTS = 4, MOST_TAPS = 6;

template <class T, int O>
constexpr int most_taps = RECONV_REGISTERS == 16 ? (O > 2 ? 3 : 4) : sizeof(T) == 4 ? MOST_TAPS : O > 2 ? 3 : 4;

thread_local Scratch taps_memory, packed_x, packed_y, vectors_of_sums, reaches, parts_memory;

// sums[o · sum_step + t] += Σ y[o] · x at offset t
template <class T, int O, int R>
void tile(Index vectors, const T *y, Index y_step, const T *x, const Index *offsets, Vector<T> *sums, Index sum_step) {
  constexpr int L = lanes<T>;
  Vector<T> acc[O][R];
  unrolled<O>([&](auto o) { unrolled<R>([&](auto r) { acc[o][r] = Vector<T>{}; }); });
  const T *from[R];
  unrolled<R>([&](auto r) { from[r] = x + offsets[r]; });
  for (Index i = 0; i < vectors * L; i += L) {
    Vector<T> outputs[O];
    unrolled<O>([&](auto o) { outputs[o] = load(y + o * y_step + i); });
    unrolled<R>([&](auto r) {
      const Vector<T> values = load(from[r] + i);
      unrolled<O>([&](auto o) { acc[o][r] += outputs[o] * values; });
    });
  }
  unrolled<O>([&](auto o) { unrolled<R>([&](auto r) { sums[o * sum_step + r] += acc[o][r]; }); });
}

template <class T>
using Tile = void (*)(Index, const T *, Index, const T *, const Index *, Vector<T> *, Index);

template <class T> struct Tiles {
  int most = 0; // taps
  Tile<T> of[MOST_TAPS] = {};
};

template <class T, int O, int... R> constexpr Tiles<T> tiles_of(std::integer_sequence<int, R...>) {
  return {sizeof...(R), {&tile<T, O, R + 1>...}}; // by R − 1
}
template <class T, int O> constexpr Tiles<T> tiles = tiles_of<T, O>(std::make_integer_sequence<int, most_taps<T, O>>{});
template <class T> constexpr Tiles<T> by_outputs[MOST_OUTPUTS] = {tiles<T, 1>, tiles<T, 2>, tiles<T, 3>, tiles<T, 4>};

// So many taps, in tiles of nearly equal size.
template <class T>
void run(const Tiles<T> &tiles, Index taps, Index vectors, const T *y, Index y_step, const T *x, const Index *offsets,
         Vector<T> *sums, Index sum_step) {
  const Index parts = divided_up(taps, tiles.most), least = taps / parts;
  Index longer = taps % parts; // tiles that have one more
  for (Index at = 0; at < taps; --longer) {
    const Index some = least + (longer > 0);
    tiles.of[some - 1](vectors, y, y_step, x, offsets + at, sums + at, sum_step);
    at += some;
  }
}

// What is computed, the same for all threads.
struct Plan {
  Walk walks[3];
  Layout x, y; // of a strip
  Index lead;  // zeros before a plane of y
  Taps taps;
  int cut;                           // the axis that is cut into strips
  Index strip, strips;               // positions; how many
  Index groups, group_blocks;        // of a job; how many
  Index outputs, output_blocks;      // channels of a group in a job; how many
  Index inputs, input_blocks;
  Index window, parts;               // taps; of each job
};

Plan plan_of(const ConvShape &shape, int lanes_) {
  Plan p{};
  p.window = shape.axes[0].kernel * shape.axes[1].kernel * shape.axes[2].kernel;
  for (int a = 0; a < 3; ++a)
    p.walks[a] = walk_of(shape.axes[a], shape.pass);
  p.cut = p.walks[0].positions > 1 ? 0 : p.walks[1].positions > 1 ? 1 : 2;
  Index positions[3] = {p.walks[0].positions, p.walks[1].positions, p.walks[2].positions}, &cut = positions[p.cut];
  const Index all = cut, halo = (p.walks[p.cut].span - 1) / p.walks[p.cut].step;
  const Index least = larger(p.cut == 2 ? STRIP / 2 : 4, 2 * halo);
  while (cut >= 2 * least && layout_of(p.walks, positions, 0).volume > STRIP)
    cut = divided_up(cut, 2);
  p.strips = all ? divided_up(all, cut) : 0;
  p.strip = cut = p.strips ? divided_up(all, p.strips) : 0;
  p.x = p.y = layout_of(p.walks, positions, 2 * lanes_);
  for (int a = 0; a < 3; ++a)
    p.y.lines[a] = {1, 1, a == 0 ? positions[0] : p.x.lines[a].length, 0, 0, positions[a]};
  p.y.volume = p.y.lines[0].length * p.y.lines[1].length * p.y.lines[2].length;
  p.lead = divided_up((MOST_OUTPUTS - 1) * p.x.pitch(), lanes_) * lanes_;
  p.y.plane = divided_up(2 * p.lead + p.y.volume, lanes_) * lanes_ + 2 * lanes_;

  const auto side_by_side = [](const Strides &s) { return s.channel == 1 && s.axis[2] != 1; };
  const Index channels = larger(shape.in_channels, shape.out_channels), quadruple = MOST_OUTPUTS * p.window;
  p.groups = side_by_side(shape.x) || side_by_side(shape.y) ? smaller(shape.groups, larger(1, lanes_ / channels)) : 1;
  p.inputs = smaller(shape.in_channels, larger(1, SUMS / quadruple));
  p.outputs = smaller(shape.out_channels, MOST_OUTPUTS * larger(1, SUMS / (quadruple * p.inputs)));
  p.input_blocks = divided_up(shape.in_channels, p.inputs), p.inputs = divided_up(shape.in_channels, p.input_blocks);
  p.output_blocks = divided_up(shape.out_channels, p.outputs);
  if (p.input_blocks * p.output_blocks > 1)
    p.groups = 1;
  p.group_blocks = divided_up(shape.groups, p.groups);
  const Index jobs = p.group_blocks * p.input_blocks * p.output_blocks;
  p.parts = jobs >= LEAST_JOBS ? 1 : larger(1, smaller(shape.batch * p.strips, divided_up(LEAST_JOBS, jobs)));
  return p;
}

struct Job {
  Index group, groups, output, outputs, input, inputs;
};

Job job_of(const ConvShape &shape, const Plan &p, Index i) {
  const Index group = i / p.input_blocks / p.output_blocks * p.groups;
  const Index output = i / p.input_blocks % p.output_blocks * p.outputs, input = i % p.input_blocks * p.inputs;
  return {group,  smaller(p.groups, shape.groups - group),
          output, smaller(p.outputs, shape.out_channels - output),
          input,  smaller(p.inputs, shape.in_channels - input)};
}

template <class T> bool finite(const T *x, Index count) { // count: of whole vectors
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr Bits exponent = sizeof(T) == 4 ? Bits{0x7f800000} : Bits(0x7ff) << 52;
  Vector<Bits> any{};
  for (Index i = 0; i < count; i += lanes<T>)
    any |= reinterpret_cast<Vector<Bits>>((reinterpret_cast<Vector<Bits>>(load(x + i)) & exponent) == exponent);
  Bits all = 0;
  for (int lane = 0; lane < lanes<T>; ++lane)
    all |= any[lane];
  return all == 0;
}

// A strip of some channels' planes: where they lie and how many positions they have.
template <class T> struct Strip {
  const T *x, *y;
  Index positions[3];
};

// Adds to the sums of one group.
template <class T>
void add(const Plan &p, const Job &job, const Strip<T> &strip, const Index *offsets, Vector<T> *sums) {
  const Phase &phase = *p.taps.phases;
  const Rows *runs = p.taps.rows + phase.rows;
  const Index pitch = p.x.pitch(), *n = strip.positions;
  const Index values = ((n[0] - 1) * p.y.lines[1].length + n[1] - 1) * pitch + n[2];
  Index most_rows = p.outputs == 1 && job.outputs == 1 && phase.stacked ? MOST_OUTPUTS : 1;
  for (Index i = 0; i < phase.runs; ++i)
    most_rows = smaller(most_rows, runs[i].count);
  if (most_rows > 1) {
    for (Index c = 0; c < job.inputs; ++c)
      for (Index i = 0; i < phase.runs; ++i) {
        Index parts = divided_up(runs[i].count, most_rows);
        for (Index row = 0, some; parts; row += some, --parts) {
          some = divided_up(runs[i].count - row, parts);
          const Index tap = c * p.window + runs[i].first + row * phase.columns;
          run(by_outputs<T>[some - 1], phase.columns, divided_up(values + (some - 1) * pitch, lanes<T>), strip.y,
              -pitch, strip.x, offsets + tap, sums + tap, phase.columns);
        }
      }
    return;
  }
  const Index taps = job.inputs * p.window;
  Index blocks = divided_up(job.outputs, MOST_OUTPUTS);
  for (Index o = 0, some; o < job.outputs; o += some, --blocks) {
    some = divided_up(job.outputs - o, blocks);
    run(by_outputs<T>[some - 1], taps, divided_up(values, lanes<T>), strip.y + o * p.y.plane, p.y.plane, strip.x,
        offsets, sums + o * taps, taps);
  }
}

// The same by rows, without the products between them.
template <class T>
void add_rows(const Plan &p, const Job &job, const Strip<T> &strip, const Index *offsets, Vector<T> *sums) {
  const Index taps = job.inputs * p.window;
  for (Index o = 0; o < job.outputs; ++o)
    for (Index t = 0; t < taps; ++t)
      for (Index d = 0; d < strip.positions[0]; ++d)
        for (Index h = 0; h < strip.positions[1]; ++h) {
          const Index at = (d * p.y.lines[1].length + h) * p.x.pitch();
          const T *y = strip.y + o * p.y.plane + at, *x = strip.x + offsets[t] + at;
          T sum = 0;
          for (Index i = 0; i < strip.positions[2]; ++i)
            sum += y[i] * x[i];
          sums[o * taps + t][0] += sum;
        }
}

template <class S> struct Tensors {
  const S *x, *y;
};

// Packs one strip of one sample for a job, and adds to its sums.
template <class S>
void add_strip(const ConvShape &shape, const Plan &p, const Job &job, const Tensors<S> &tensors, Index place,
               const Index *offsets, Computed<S> *x, Computed<S> *y, Vector<Computed<S>> *sums) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  const Index n = place / p.strips, first = place % p.strips * p.strip;
  Layout of_x = p.x, of_y = p.y;
  Strip<T> strip{x, y + p.lead, {p.walks[0].positions, p.walks[1].positions, p.walks[2].positions}};
  Index &wide = strip.positions[p.cut];
  wide = smaller(p.strip, wide - first);
  of_x.lines[p.cut].lowest += p.walks[p.cut].step * first;
  of_y.lines[p.cut].lowest = of_y.lines[p.cut].first = first, of_y.lines[p.cut].end = first + wide;
  const Index x_planes = job.groups * job.inputs, y_planes = job.groups * job.outputs;
  pack<S>(of_x, tensors.x + n * shape.x.batch + (job.group * shape.in_channels + job.input) * shape.x.channel, shape.x,
          x_planes, x);
  pack<S>(of_y, tensors.y + n * shape.y.batch + (job.group * shape.out_channels + job.output) * shape.y.channel,
          shape.y, y_planes, y + p.lead);
  for (Index c = 0; c < x_planes; ++c) // the slack
    clear(x + (c + 1) * of_x.plane, -2 * L, 0);
  for (Index c = 0; c < y_planes; ++c) {
    clear(y + c * of_y.plane, 0, p.lead);
    zeros(y + c * of_y.plane + p.lead + of_y.volume, of_y.plane - p.lead - of_y.volume);
  }
  zeros(x + x_planes * of_x.plane, L); // which is looked at, too
  const auto how = finite(x, x_planes * of_x.plane) ? &add<T> : &add_rows<T>;
  for (Index g = 0; g < job.groups; ++g) {
    how(p, job, strip, offsets, sums + g * job.outputs * job.inputs * p.window);
    strip.x += job.inputs * of_x.plane, strip.y += job.outputs * of_y.plane;
  }
}

// The sums of a job to the weights, in the order in which they are.
template <class S, class F> void put(const ConvShape &shape, const Plan &p, const Job &job, S *w, F &&sum) {
  Index i = 0;
  for (Index g = job.group; g < job.group + job.groups; ++g)
    for (Index o = job.output; o < job.output + job.outputs; ++o)
      for (Index c = job.input; c < job.input + job.inputs; ++c)
        for (Index t = 0; t < p.window; ++t, ++i)
          if constexpr (std::is_same_v<S, bf16>) {
            const auto half = narrowed(Vector<float>{} + sum(i));
            std::memcpy(w + (g * shape.out_channels + o) * shape.w.batch + c * shape.w.channel + p.taps.weights[t],
                        &half, sizeof(S));
          } else
            w[(g * shape.out_channels + o) * shape.w.batch + c * shape.w.channel + p.taps.weights[t]] = sum(i);
}

} // namespace

template <class S> int planar_weights(const ConvShape &shape, const S *x, S *w, const S *y, Parallel parallel) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  Plan p = plan_of(shape, L);
  if (!list_taps(shape, p.walks, p.x, taps_memory, p.taps))
    return 1;
  const Index jobs = p.group_blocks * p.input_blocks * p.output_blocks, places = shape.batch * p.strips;
  const Index most = p.groups * p.outputs * p.inputs * p.window; // sums of a job
  T *parts = p.parts > 1 ? parts_memory.of<T>(jobs * p.parts * most) : nullptr;
  if (p.parts > 1 && !parts)
    return 1;
  int failed = 0;
  const auto some = [&](Index begin, Index end) {
    T *planes_x = packed_x.of<T>(p.groups * p.inputs * p.x.plane + L);
    T *planes_y = packed_y.of<T>(p.groups * p.outputs * p.y.plane + L);
    auto *sums = vectors_of_sums.of<Vector<T>>(most);
    Index *offsets = reaches.of<Index>(p.inputs * p.window);
    if (!planes_x || !planes_y || !sums || !offsets)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    for (Index c = 0; c < p.inputs; ++c)
      for (Index t = 0; t < p.window; ++t)
        offsets[c * p.window + t] = c * p.x.plane + p.taps.offsets[t];
    for (Index i = begin; i < end; ++i) {
      const Job job = job_of(shape, p, i / p.parts);
      const Index part = i % p.parts, count = job.groups * job.outputs * job.inputs * p.window;
      for (Index k = 0; k < count; ++k)
        sums[k] = Vector<T>{};
      for (Index place = places * part / p.parts; place < places * (part + 1) / p.parts; ++place)
        add_strip<S>(shape, p, job, {x, y}, place, offsets, planes_x, planes_y, sums);
      const auto total = [&](Index k) {
        T sum = 0;
        for (int lane = 0; lane < L; ++lane)
          sum += sums[k][lane];
        return sum;
      };
      if (p.parts == 1)
        put(shape, p, job, w, total);
      for (Index k = 0; p.parts > 1 && k < count; ++k)
        parts[i * most + k] = total(k);
    }
  };
  Index macs = larger(1, most * p.strip * divided_up(places, p.parts));
  for (int a = 0; a < 3; ++a)
    macs *= a == p.cut ? 1 : larger(1, p.walks[a].positions);
  parallel(shape.threads, jobs * p.parts, larger(1, MACS_PER_THREAD / macs), &called<decltype(some)>, &some);
  for (Index i = 0; p.parts > 1 && !failed && i < jobs; ++i)
    put(shape, p, job_of(shape, p, i), w, [&](Index k) {
      T sum = 0;
      for (Index part = 0; part < p.parts; ++part)
        sum += parts[(i * p.parts + part) * most + k];
      return sum;
    });
  return failed;
}

template int planar_weights<float>(const ConvShape &, const float *, float *, const float *, Parallel);
template int planar_weights<double>(const ConvShape &, const double *, double *, const double *, Parallel);
template int planar_weights<bf16>(const ConvShape &, const bf16 *, bf16 *, const bf16 *, Parallel);

} // namespace reconv::RECONV_ISA
