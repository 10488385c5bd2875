// Convolutions with few channels a group that lie side by side, forward and to the input: planar_lanes.hpp.
//
// A tile is some positions × the sums of each r; the rows of a strip are packed with the zeros around them.
#include "planar_lanes.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr Index MACS_PER_THREAD = 200'000; // less is done before another thread has begun

// How many positions a tile has: sums, inputs and a weight fit the registers.
template <int G>
constexpr int tile_positions = RECONV_REGISTERS == 16 ? (G == 2 ? 4 : G == 4 ? 3 : 1) : G == 2 ? 8 : 24 / G;
constexpr int MOST_POSITIONS = 8;
constexpr Index AT_ONCE = 256; // positions, whose rows pass by for each vector of channels

thread_local Scratch taps_memory, packed_weights, packed_source, all_spots;

// A position: where it starts in the source and in the target.
struct Spot {
  Index from, to;
};

// What a tile is computed from, for one vector of channels: weights are [tap][r][lane].
template <class S> struct Work {
  const Computed<S> *source, *weights;
  S *target;
  const Index *offsets;
  Index taps;
  Vector<Computed<S>> bias, least; // what is less becomes the least
  Index channels;                  // that are wanted
};

// So many positions, in whole tiles.
template <class S, int G> void run_tiles(const Work<S> &work, const Spot *spots, Index count) {
  using T = Computed<S>;
  constexpr int L = lanes<T>, P = tile_positions<G>;
  for (const Spot *end = spots + count; spots < end; spots += P) {
    Vector<T> acc[G][P];
    unrolled<G>([&](auto r) { unrolled<P>([&](auto p) { acc[r][p] = r == 0 ? work.bias : Vector<T>{}; }); });
    const T *from[P], *w = work.weights;
    unrolled<P>([&](auto p) {
      from[p] = work.source + spots[p].from;
      __builtin_prefetch(work.target + spots[p].to, 1);
    });
    for (Index t = 0; t < work.taps; ++t, w += G * L) {
      const Index offset = work.offsets[t] * L;
      Vector<T> values[P];
      unrolled<P>([&](auto p) { values[p] = load(from[p] + offset); });
      unrolled<G>([&](auto r) {
        const Vector<T> weight = load(w + r * L);
        unrolled<P>([&](auto p) { acc[r][p] += weight * values[p]; });
      });
    }
    Vector<T> sums[P]; // of all before one is stored: they do not wait for each other
    unrolled<P>([&](auto p) {
      sums[p] = acc[0][p];
      unrolled<G - 1>([&](auto r) { sums[p] += swapped<r + 1, T>(acc[r + 1][p]); });
      sums[p] = sums[p] < work.least ? work.least : sums[p];
    });
    if (work.channels >= L)
      unrolled<P>([&](auto p) { store(work.target + spots[p].to, sums[p]); });
    else
      unrolled<P>([&](auto p) { store(work.target + spots[p].to, sums[p], work.channels); });
  }
}

// In the tensor of weights.
struct WeightSteps {
  Index group, target, source;
};

// Weights of a vector of channels as [phase][tap][r][lane of the source].
template <class S, int G>
void pack_weights(const Taps &taps, const S *from, const WeightSteps &steps, Index groups, Computed<S> *to) {
  constexpr int L = lanes<Computed<S>>;
  for (Index i = 0; i < taps.count; ++i) {
    const Phase &phase = taps.phases[i];
    const Index *at = taps.weights + phase.first;
    if (groups * G < L)
      zeros(to, phase.taps * G * L);
    for (Index g = 0; g < groups; ++g)
      unrolled<G>([&](auto c) {
        const S *own[G];
        unrolled<G>([&](auto r) { own[r] = from + g * steps.group + (c ^ r) * steps.target + c * steps.source; });
        for (Index t = 0; t < phase.taps; ++t)
          unrolled<G>([&](auto r) { to[(t * G + r) * L + g * G + c] = widened(own[r][at[t]]); });
      });
    to += phase.taps * G * L;
  }
}

template <class S> struct Tile {
  int positions;
  void (*run)(const Work<S> &, const Spot *, Index);
  void (*pack)(const Taps &, const S *, const WeightSteps &, Index, Computed<S> *);
};
template <class S> Tile<S> tile_of(Index channels) {
  if constexpr (lanes<Computed<S>> >= 8)
    if (channels == 8)
      return {tile_positions<8>, &run_tiles<S, 8>, &pack_weights<S, 8>};
  if constexpr (lanes<Computed<S>> >= 4)
    if (channels == 4)
      return {tile_positions<4>, &run_tiles<S, 4>, &pack_weights<S, 4>};
  return {tile_positions<2>, &run_tiles<S, 2>, &pack_weights<S, 2>};
}

// What is computed, the same for all threads.
template <class S> struct Plan {
  const ConvShape *shape;
  const S *source, *weights, *bias;
  S *target;
  Index channels; // of a group
  Strides from, to;
  WeightSteps steps;
  Walk walks[3];
  Cut cut;
  Taps taps;
  Index groups, window; // of a vector; taps of all phases
  Tile<S> tile;
};

template <class S> Plan<S> plan_of(const ConvShape &shape, const S *source, const S *w, const S *b, S *target) {
  using T = Computed<S>;
  const bool back = shape.pass == Pass::input_gradient;
  Plan<S> p{};
  p.shape = &shape, p.source = source, p.weights = w, p.bias = b, p.target = target;
  p.channels = shape.in_channels;
  p.from = back ? shape.y : shape.x, p.to = back ? shape.x : shape.y;
  p.steps = {shape.out_channels * shape.w.batch, back ? shape.w.channel : shape.w.batch,
             back ? shape.w.batch : shape.w.channel};
  for (int a = 0; a < 3; ++a)
    p.walks[a] = walk_of(shape.axes[a], shape.pass);
  p.groups = lanes<T> / p.channels;
  p.window = shape.axes[0].kernel * shape.axes[1].kernel * shape.axes[2].kernel;
  p.tile = tile_of<S>(p.channels);
  p.cut = cut_of(p.walks, divided_up(shape.groups, p.groups),
                 shape.threads > 1 ? divided_up(2 * shape.threads, larger(1, shape.batch)) : 1, AT_ONCE);
  return p;
}

// A part of the work.
struct Job {
  Index channel, channels, n, strip;
};

// Lists the positions of some rows of a phase; the last is repeated up to a whole tile. Returns how many there are.
template <class S> Index list_spots(const Plan<S> &p, Index rows, Index wide, Spot *spots) {
  const Index step = p.walks[2].step, row_step = p.walks[1].step * p.cut.layout.pitch();
  const Index to_step = p.walks[2].phases * p.to.axis[2], to_row = p.walks[1].phases * p.to.axis[1];
  Index count = 0;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < wide; ++j)
      spots[count++] = {(i * row_step + j * step) * lanes<Computed<S>>, i * to_row + j * to_step};
  for (; count % p.tile.positions; ++count)
    spots[count] = spots[count - 1];
  return count;
}

// The rows h … end − 1 at depth d of a strip.
template <class S>
void run_rows(const Plan<S> &p, const Job &job, Index d, Index h, Index end, const Computed<S> *source,
              const Computed<S> *weights, Spot *spots) {
  constexpr int L = lanes<Computed<S>>;
  Index begin[3] = {d, h, 0}, count[3] = {1, end - h, p.walks[2].positions};
  begin[p.cut.axis] += job.strip * p.cut.strip;
  count[2] = smaller(count[2] - begin[2], p.cut.axis == 2 ? p.cut.strip : count[2]);
  for (Index i = 0; i < p.taps.count; ++i) {
    const Phase &phase = p.taps.phases[i];
    const Index residues[3] = {i / p.walks[2].phases / p.walks[1].phases, i / p.walks[2].phases % p.walks[1].phases,
                               i % p.walks[2].phases};
    S *target = p.target + job.n * p.to.batch + job.channel;
    Index some[3]; // of some phases there is a position less
    for (int a = 0; a < 3; ++a) {
      some[a] = smaller(count[a], phase.combs[a].positions - begin[a]);
      target += (p.walks[a].phases * begin[a] + residues[a]) * p.to.axis[a];
    }
    if (some[0] <= 0 || some[1] <= 0 || some[2] <= 0)
      continue;
    const Index listed = list_spots(p, some[1], some[2], spots);
    Work<S> work{source, weights + phase.first * p.channels * L, target, p.taps.offsets + phase.first, phase.taps, {},
                 Vector<Computed<S>>{} - (p.shape->relu ? 0 : Computed<S>(__builtin_inf())), 0};
    for (Index c = 0; c < job.channels; c += L) {
      work.channels = smaller(L, job.channels - c);
      for (Index k = 0; p.bias && k < work.channels; ++k)
        work.bias[k] = widened(p.bias[job.channel + c + k]);
      p.tile.run(work, spots, listed);
      work.source += p.cut.layout.plane * L, work.weights += p.window * p.channels * L, work.target += L;
    }
  }
}

template <class S>
void run_job(const Plan<S> &p, const Job &job, Computed<S> *source, const Computed<S> *weights, Spot *spots) {
  constexpr int L = lanes<Computed<S>>;
  const Walk &d_walk = p.walks[0], &h_walk = p.walks[1];
  Layout layout = p.cut.layout;
  layout.lines[p.cut.axis].lowest += p.walks[p.cut.axis].step * job.strip * p.cut.strip;
  Packed<S> packed{layout, p.source + job.n * p.from.batch + job.channel, p.from, job.channels, source};
  Index count[2] = {d_walk.positions, h_walk.positions};
  if (p.cut.axis < 2)
    count[p.cut.axis] = smaller(p.cut.strip, count[p.cut.axis] - job.strip * p.cut.strip);
  const Index rows = layout.lines[1].length;
  for (Index d = 0; d < count[0]; ++d)
    for (Index h = 0, end; h < count[1]; h = end) {
      end = smaller(h + p.cut.high, count[1]);
      packed.up_to((d * d_walk.step + d_walk.span - 1) * rows + (end - 1) * h_walk.step + h_walk.span);
      const Computed<S> *from = source + (d * d_walk.step * rows + h * h_walk.step) * layout.pitch() * L;
      run_rows<S>(p, job, d, h, end, from, weights, spots);
    }
}

} // namespace

template <class S>
int planar_lanes(const ConvShape &shape, const S *source, const S *w, const S *b, S *target, Parallel parallel) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  Plan<S> p = plan_of(shape, source, w, b, target);
  const Cut &cut = p.cut;
  const Index places = shape.batch * cut.strips, jobs = cut.blocks * places;
  if (jobs == 0)
    return 0;
  if (!list_taps(shape, p.walks, cut.layout, taps_memory, p.taps))
    return 1;
  int failed = 0;
  const auto some = [&](Index begin, Index end) {
    T *weights = packed_weights.of<T>(cut.block * p.window * p.channels * L);
    T *planes = packed_source.of<T>(cut.block * cut.layout.plane * L);
    Spot *spots = all_spots.of<Spot>(cut.high * p.walks[2].positions + MOST_POSITIONS);
    if (!weights || !planes || !spots)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    for (Index i = begin; i < end; ++i) {
      const Index first = i / places * cut.block * L;
      const Job job{first, smaller(cut.block * L, shape.groups * p.channels - first), i % places / cut.strips,
                    i % cut.strips};
      for (Index c = 0; (i == begin || i % places == 0) && c < job.channels; c += L)
        p.tile.pack(p.taps, p.weights + (first + c) / p.channels * p.steps.group, p.steps,
                    smaller(p.groups, (job.channels - c) / p.channels), weights + c * p.window * p.channels);
      run_job<S>(p, job, planes, weights, spots);
    }
  };
  const Index positions = p.walks[0].positions * p.walks[1].positions * p.walks[2].positions / cut.strips;
  const Index macs = larger(1, cut.block * p.channels * L * p.window * positions);
  parallel(shape.threads, jobs, larger(1, MACS_PER_THREAD / macs), &called<decltype(some)>, &some);
  return failed;
}

template int planar_lanes<float>(const ConvShape &, const float *, const float *, const float *, float *, Parallel);
template int planar_lanes<double>(const ConvShape &, const double *, const double *, const double *, double *,
                                  Parallel);
template int planar_lanes<bf16>(const ConvShape &, const bf16 *, const bf16 *, const bf16 *, bf16 *, Parallel);

} // namespace reconv::RECONV_ISA
