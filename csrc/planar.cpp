// Convolutions with few channels a group, forward and to the input: vectors of neighbouring positions.
//
// The input is packed strip by strip (planar.hpp), and computed in chunks of rows by tiles of outputs × vectors of
// positions (planar_tiles.hpp). Of a stride, the gradient to the input has as many phases as there are residues: each is
// a convolution of its own, with a part of the taps, and fills every stride-th position.
#include "planar_lanes.hpp"
#include "planar_tiles.hpp"

namespace reconv::RECONV_ISA {
namespace {

constexpr Index MACS_PER_THREAD = 200'000; // less is done before another thread has begun
constexpr Index SOURCE_BYTES = 512 << 10, WEIGHT_BYTES = 256 << 10; // of a job: both fit the second cache

thread_local Scratch taps_memory, packed_weights, packed_source, results, all_spots;

// What is computed, the same for all threads. Sources and targets: channels of a group that are read and written.
template <class S> struct Plan {
  const ConvShape *shape;
  const S *source, *weights, *bias;
  S *target;
  Index sources, targets;
  Strides from, to;
  Index w_source, w_target;
  Walk walks[3];
  Layout layout;
  Taps taps;
  int cut;                      // the axis that is cut into strips
  Index strip, strips;          // positions; how many
  Index groups, group_blocks;   // of a job; how many
  Index block, blocks;          // targets of a job; how many
  bool turned;                  // targets lie side by side
  bool in_order;                // rows of targets lie as they are computed
};

// A part of the work and what of it is at hand.
struct Job {
  Index group, groups, target, targets, n, strip;
};

template <class S> Plan<S> plan_of(const ConvShape &shape, const S *source, const S *w, const S *b, S *target) {
  using T = Computed<S>;
  const bool back = shape.pass == Pass::input_gradient;
  Plan<S> p{};
  p.shape = &shape, p.source = source, p.weights = w, p.bias = b, p.target = target;
  p.sources = back ? shape.out_channels : shape.in_channels, p.targets = back ? shape.in_channels : shape.out_channels;
  p.from = back ? shape.y : shape.x, p.to = back ? shape.x : shape.y;
  p.w_source = back ? shape.w.batch : shape.w.channel, p.w_target = back ? shape.w.channel : shape.w.batch;
  for (int a = 0; a < 3; ++a)
    p.walks[a] = walk_of(shape.axes[a], shape.pass);
  p.cut = p.walks[0].positions > 1 ? 0 : p.walks[1].positions > 1 ? 1 : 2;
  p.turned = p.to.channel == 1 && p.walks[2].phases * p.to.axis[2] != 1;
  p.in_order = std::is_same_v<S, T> && p.walks[2].phases * p.to.axis[2] == 1;
  const bool side_by_side = (p.turned || (p.from.channel == 1 && p.from.axis[2] != 1));
  p.groups = side_by_side ? smaller(shape.groups, larger(1, lanes<T> / larger(p.sources, p.targets))) : 1;
  p.group_blocks = divided_up(shape.groups, p.groups);
  const Index window = shape.axes[0].kernel * shape.axes[1].kernel * shape.axes[2].kernel * p.sources;
  p.block = p.targets;
  if (p.groups == 1 && p.targets > MOST_OUTPUTS) {
    const Index most = larger(1, WEIGHT_BYTES / (window * MOST_OUTPUTS * Index(sizeof(T)))); // quadruples
    p.block = smaller(p.targets, divided_up(divided_up(p.targets, MOST_OUTPUTS), divided_up(p.targets, MOST_OUTPUTS * most))
                                     * MOST_OUTPUTS);
  }
  p.blocks = divided_up(p.targets, p.block);
  Index positions[3] = {p.walks[0].positions, p.walks[1].positions, p.walks[2].positions}, &cut = positions[p.cut];
  const auto bytes = [&] { return layout_of(p.walks, positions, 2 * lanes<T>).plane * p.sources * p.groups * Index(sizeof(T)); };
  const Index jobs = shape.batch * p.group_blocks * p.blocks, all = cut;
  const Index halo = (p.walks[p.cut].span - 1) / p.walks[p.cut].step; // read again for each strip
  const Index least = larger(p.cut == 2 ? 512 : 8, 2 * halo);
  while (cut >= 2 * least && (bytes() > SOURCE_BYTES || (shape.threads > 1 && jobs * divided_up(all, cut) < 2 * shape.threads)))
    cut = divided_up(cut, 2);
  p.strips = all ? divided_up(all, cut) : 0;
  p.strip = cut = p.strips ? divided_up(all, p.strips) : 0;
  p.layout = layout_of(p.walks, positions, 2 * lanes<T>);
  return p;
}

// Weights as [phase][group][block of outputs][source][tap][output of the block].
template <class S> void pack_weights(const Plan<S> &p, const Job &job, Computed<S> *to) {
  for (Index i = 0; i < p.taps.count; ++i) {
    const Phase &phase = p.taps.phases[i];
    const Index *at = p.taps.weights + phase.first;
    for (Index g = job.group; g < job.group + job.groups; ++g) {
      const S *of_group = p.weights + g * p.shape->out_channels * p.shape->w.batch;
      Index blocks = divided_up(job.targets, MOST_OUTPUTS);
      for (Index o = 0, some; o < job.targets; o += some, --blocks) {
        some = divided_up(job.targets - o, blocks);
        for (Index c = 0; c < p.sources; ++c) {
          const S *from = of_group + (job.target + o) * p.w_target + c * p.w_source;
          const auto outputs = [&](auto count) {
            for (Index t = 0; t < phase.taps; ++t)
              unrolled<count>([&](auto k) { *to++ = widened(from[at[t] + k * p.w_target]); });
          };
          some == 1   ? outputs(std::integral_constant<int, 1>{})
          : some == 2 ? outputs(std::integral_constant<int, 2>{})
          : some == 3 ? outputs(std::integral_constant<int, 3>{})
                      : outputs(std::integral_constant<int, 4>{});
        }
      }
    }
  }
}

// Rows of results, `pitch` apart, to where they belong.
template <class S>
void write(const Computed<S> *from, Index channel_step, Index pitch, Index channels, Index rows, Index wide, S *to,
           Index to_channel, Index to_row, Index to_column) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  if (to_column == 1) {
    for (Index c = 0; c < channels; ++c)
      for (Index i = 0; i < rows; ++i) {
        const T *row = from + c * channel_step + i * pitch;
        S *at = to + c * to_channel + i * to_row;
        Index j = 0;
        for (; j + L <= wide; j += L)
          store(at + j, load(row + j));
        if (j < wide)
          store(at + j, load(row + j), wide - j);
      }
  } else if (to_channel == 1 && channels * 2 > L) {
    for (Index c = 0; c < channels; c += L)
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < wide; j += L) {
          Vector<T> square[L];
          unrolled<L>([&](auto k) { // past the last channel anything: the last one again
            square[k] = load(from + (c + k < channels ? c + k : c) * channel_step + i * pitch + j);
          });
          transpose<T>(square);
          S *at = to + c + i * to_row + j * to_column;
          unrolled<L>([&](auto k) { __builtin_prefetch(at + (k + 2 * L) * to_column, 1); });
          unrolled<L>([&](auto k) {
            if (j + k < wide) {
              if (channels - c >= L)
                store(at + k * to_column, square[k]);
              else
                store(at + k * to_column, square[k], channels - c);
            }
          });
        }
  } else {
    for (Index c = 0; c < channels; ++c)
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < wide; j += L) {
          const Vector<T> v = load(from + c * channel_step + i * pitch + j);
          S whole[L];
          store(whole, v);
          for (Index k = 0; k < smaller(L, wide - j); ++k)
            to[c * to_channel + i * to_row + (j + k) * to_column] = whole[k];
        }
  }
}

// Some rows of one phase for all targets of a job.
template <class S> struct Chunk {
  const Phase *phase;
  Index rows, wide;
  const Computed<S> *source, *weights;
  S *target; // of the job's first channel
};

// How the rows of a chunk become vectors, and where they go to.
struct Spread {
  bool flat, direct;  // across the ends of rows; to the target itself
  Index vectors, row; // in all; of a row
  Index channel, pitch; // steps of what is written
};

template <class S> Spread spread_of(const Plan<S> &p, const Chunk<S> &chunk, bool by_rows, Spot *spots) {
  constexpr int L = lanes<Computed<S>>;
  const Index pitch = p.layout.pitch(), row = divided_up(chunk.wide, L);
  const Index flat = divided_up((chunk.rows - 1) * pitch + chunk.wide, L), apart = chunk.rows * row;
  Spread to{!by_rows && 4 * apart > 5 * flat, false, 0, row, larger(flat, apart) * L, row * L};
  to.direct = p.in_order && !to.flat, to.vectors = to.flat ? flat : apart;
  if (to.flat)
    to.pitch = pitch;
  if (to.direct)
    to.channel = p.to.channel, to.pitch = p.walks[1].phases * p.to.axis[1];
  for (Index i = 0; to.flat && i < flat; ++i)
    spots[i] = {i * L, i * L, L};
  for (Index i = 0; !to.flat && i < chunk.rows; ++i)
    for (Index j = 0; j < row; ++j)
      *spots++ = {i * pitch + j * L, i * to.pitch + j * L, to.direct ? chunk.wide - j * L : L};
  return to;
}

template <class S> void compute(const Plan<S> &p, const Job &job, const Chunk<S> &chunk, Spot *spots, Computed<S> *result) {
  using T = Computed<S>;
  const Phase &phase = *chunk.phase;
  const Work<T> work{p.sources, p.layout.plane, p.taps.offsets + phase.first, phase.taps, phase.columns,
                     p.layout.pitch(), p.taps.rows + phase.rows, phase.runs, p.shape->relu != 0};
  Index most_rows = p.targets == 1 && phase.stacked ? smaller(most_stacked_rows<T>, chunk.rows) : 1;
  for (Index run = 0; run < phase.runs; ++run)
    most_rows = smaller(most_rows, work.rows[run].count);
  const Spread to = spread_of(p, chunk, most_rows > 1, spots);
  const T *w = chunk.weights;
  Index held = 0, written = 0; // channels
  for (Index g = 0; g < job.groups; ++g) {
    Index blocks = divided_up(job.targets, MOST_OUTPUTS);
    for (Index o = 0, some; o < job.targets; o += some, --blocks) {
      some = divided_up(job.targets - o, blocks);
      T bias[MOST_OUTPUTS] = {};
      for (Index k = 0; p.bias && k < some; ++k)
        bias[k] = widened(p.bias[(job.group + g) * p.targets + job.target + o + k]);
      const T *x = chunk.source + g * p.sources * p.layout.plane;
      T *y = to.direct ? reinterpret_cast<T *>(chunk.target) + written * to.channel : result + held * to.channel;
      for (Index row = 0, high; most_rows > 1 && row < chunk.rows; row += high) {
        const Index left = smaller(most_rows, chunk.rows - row);
        high = left == most_stacked_rows<T> ? left : left >= 2 ? 2 : 1;
        run(by_rows<T>(high), work, spots + row * to.row, to.row, x, w, bias, y, to.pitch);
      }
      if (most_rows == 1)
        run(by_outputs<T>[some - 1], work, spots, to.vectors, x, w, bias, y, to.channel);
      w += some * p.sources * phase.taps;
      held += some;
      const bool last = g + 1 == job.groups && o + some == job.targets;
      if (!to.direct && (last || !p.turned || held >= lanes<T>))
        write<S>(result, to.channel, to.pitch, held, chunk.rows, chunk.wide, chunk.target + written * p.to.channel,
                 p.to.channel, p.walks[1].phases * p.to.axis[1], p.walks[2].phases * p.to.axis[2]);
      else if (!to.direct)
        continue;
      written += held, held = 0;
    }
  }
}

// The rows of a chunk are so many that the results of a block stay in the first cache.
template <class S> Index chunk_rows(const Plan<S> &p) {
  const Index values = p.turned ? 512 : 1024, rows = larger(1, values / larger(1, p.layout.pitch()));
  return p.targets == 1 ? divided_up(rows, MOST_OUTPUTS) * MOST_OUTPUTS : rows;
}
template <class S> Index most_spots(const Plan<S> &p) {
  return (chunk_rows(p) + 1) * (p.layout.pitch() / lanes<Computed<S>> + 2);
}
template <class S> Index result_values(const Plan<S> &p) {
  constexpr int L = lanes<Computed<S>>;
  const Index channels = p.turned ? L + MOST_OUTPUTS : MOST_OUTPUTS;
  return channels * (chunk_rows(p) + 1) * (p.layout.pitch() + L) + 2 * L;
}

template <class S>
void run_job(const Plan<S> &p, const Job &job, const Computed<S> *source, const Computed<S> *weights,
             Spot *spots, Computed<S> *result) {
  for (Index i = 0; i < p.taps.count; ++i) {
    const Phase &phase = p.taps.phases[i];
    const Index residues[3] = {i / p.walks[2].phases / p.walks[1].phases, i / p.walks[2].phases % p.walks[1].phases,
                               i % p.walks[2].phases};
    Index begin[3] = {}, count[3];
    for (int a = 0; a < 3; ++a) {
      begin[a] = a == p.cut ? job.strip * p.strip : 0;
      count[a] = smaller(phase.combs[a].positions - begin[a], a == p.cut ? p.strip : p.walks[a].positions);
    }
    S *target = p.target + job.n * p.to.batch + (job.group * p.targets + job.target) * p.to.channel;
    for (int a = 0; a < 3; ++a)
      target += (p.walks[a].phases * begin[a] + residues[a]) * p.to.axis[a];
    const Index chunks = count[1] > 0 && count[2] > 0 ? divided_up(count[1], chunk_rows(p)) : 0;
    for (Index d = 0; d < count[0]; ++d)
      for (Index h = 0, high, left = chunks; left; h += high, --left) {
        high = divided_up(count[1] - h, left);
        compute<S>(p, job,
                   {&phase, high, count[2], source + (d * p.layout.lines[1].length + h) * p.layout.pitch(), weights,
                    target + p.walks[0].phases * d * p.to.axis[0] + p.walks[1].phases * h * p.to.axis[1]},
                   spots, result);
      }
    weights += job.groups * job.targets * p.sources * phase.taps;
  }
}

template <class S> int correlate(const ConvShape &shape, const S *source, const S *w, const S *b, S *target,
                                 Parallel parallel) {
  using T = Computed<S>;
  Plan<S> p = plan_of(shape, source, w, b, target);
  const Index jobs = p.group_blocks * p.blocks * shape.batch * p.strips;
  if (jobs == 0)
    return 0;
  if (!list_taps(shape, p.walks, p.layout, taps_memory, p.taps))
    return 1;
  const Index window = shape.axes[0].kernel * shape.axes[1].kernel * shape.axes[2].kernel;
  int failed = 0;
  const auto some = [&](Index begin, Index end) {
    T *weights = packed_weights.of<T>(p.groups * p.block * p.sources * window);
    T *planes = packed_source.of<T>(p.groups * p.sources * p.layout.plane + lanes<T>);
    T *result = results.of<T>(result_values(p));
    Spot *spots = all_spots.of<Spot>(most_spots(p));
    if (!weights || !planes || !result || !spots)
      return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    Index of_weights = -1, of_planes = -1; // whose are at hand
    for (Index i = begin; i < end; ++i) {
      const Index part = i / p.strips / shape.batch, place = i % (p.strips * shape.batch);
      const Index group = part / p.blocks * p.groups, target = part % p.blocks * p.block;
      const Job job{group, smaller(p.groups, shape.groups - group), target, smaller(p.block, p.targets - target),
                       place / p.strips, place % p.strips};
      if (of_weights != part)
        pack_weights(p, job, weights);
      if (of_planes != part / p.blocks * p.strips * shape.batch + place) {
        Layout layout = p.layout;
        layout.lines[p.cut].lowest += p.walks[p.cut].step * job.strip * p.strip;
        pack<S>(layout, p.source + job.n * p.from.batch + job.group * p.sources * p.from.channel, p.from,
                job.groups * p.sources, planes);
      }
      of_weights = part, of_planes = part / p.blocks * p.strips * shape.batch + place;
      run_job<S>(p, job, planes, weights, spots, result);
    }
  };
  const Index macs = larger(1, p.groups * p.block * p.sources * window * p.strip * p.walks[1].positions *
                                   p.walks[2].positions * p.walks[0].positions / larger(1, p.walks[p.cut].positions));
  parallel(shape.threads, jobs, larger(1, MACS_PER_THREAD / macs), &called<decltype(some)>, &some);
  return failed;
}

} // namespace

template <class S>
int planar(const ConvShape &shape, const void *x, const void *w, const void *b, const void *y, Parallel parallel) {
  const auto of = [](const void *tensor) { return static_cast<S *>(const_cast<void *>(tensor)); };
  const bool lanes = in_lanes<S>(shape);
  if (shape.pass == Pass::weight_gradient)
    return (lanes ? planar_lanes_weights<S> : planar_weights<S>)(shape, of(x), of(w), of(y), parallel);
  const auto run = lanes ? planar_lanes<S> : correlate<S>;
  return shape.pass == Pass::forward ? run(shape, of(x), of(w), of(b), of(y), parallel)
                                     : run(shape, of(y), of(w), of(b), of(x), parallel);
}

template int planar<float>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int planar<double>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int planar<bf16>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);

} // namespace reconv::RECONV_ISA
