// Rows of a map with their channels side by side, as the tile reads and writes them, from and to tensors of any layout.
#pragma once

#include "simd.hpp"

namespace reconv::RECONV_ISA {

template <class S> void converted(const S *from, std::int64_t count, Computed<S> *to) {
  constexpr int L = lanes<Computed<S>>;
  std::int64_t i = 0;
  for (; i + L <= count; i += L)
    store(to + i, load(from + i));
  if (i < count)
    store(to + i, load(from + i, count - i), count - i);
}

template <class S> [[gnu::always_inline]] inline void narrowed_into(S *to, Computed<S> value) {
  store(to, Vector<Computed<S>>{} + value, 1);
}

// to[p · to_step + c] = from[c · channel_step + p · step]
template <class S>
void read_row(const S *from, std::int64_t channel_step, std::int64_t step, std::int64_t channels, std::int64_t count,
              Computed<S> *to, std::int64_t to_step) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  if (channels == 1 ? step == 1 && to_step == 1 : channel_step == 1 && step == channels && to_step == channels)
    return converted(from, channels * count, to);
  if (channel_step == 1) {
    for (std::int64_t p = 0; p < count; ++p)
      converted(from + p * step, channels, to + p * to_step);
    return;
  }
  std::int64_t c = 0;
  if (step == 1 && channels > 1)
    for (; c < channels; c += L)
      for (std::int64_t p = 0; p < count; p += L) {
        const std::int64_t some = smaller(channels - c, L), wide = smaller(count - p, L);
        Vector<T> rows[L];
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i) {
          const S *at = from + (c + i) * channel_step + p;
          rows[i] = i >= some ? Vector<T>{} : wide == L ? load(at) : load(at, wide);
        }
        transpose<T>(rows);
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i) {
          T *at = to + (p + i) * to_step + c;
          if (i < wide)
            some == L ? store(at, rows[i]) : store(at, rows[i], some);
        }
      }
  for (; c < channels; ++c)
    for (std::int64_t p = 0; p < count; ++p)
      to[p * to_step + c] = widened(from[c * channel_step + p * step]);
}

// to[c · channel_step + p · step] = from[p · from_step + c]. The channels fill whole vectors of `from`.
template <class S>
void write_row(const Computed<S> *from, std::int64_t from_step, std::int64_t channels, std::int64_t count, S *to,
               std::int64_t channel_step, std::int64_t step) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  for (std::int64_t c = 0; c < channels; c += L) {
    const std::int64_t some = smaller(channels - c, L);
    if (channel_step == 1)
      for (std::int64_t p = 0; p < count; ++p) {
        const Vector<T> v = load(from + p * from_step + c);
        some == L ? store(to + p * step + c, v) : store(to + p * step + c, v, some);
      }
    else if (step == 1)
      for (std::int64_t p = 0; p < count; p += L) {
        const std::int64_t wide = smaller(count - p, L);
        Vector<T> rows[L];
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i)
          rows[i] = i < wide ? load(from + (p + i) * from_step + c) : Vector<T>{};
        transpose<T>(rows);
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i) {
          S *at = to + (c + i) * channel_step + p;
          if (i < some)
            wide == L ? store(at, rows[i]) : store(at, rows[i], wide);
        }
      }
    else
      for (std::int64_t p = 0; p < count; ++p)
        for (std::int64_t i = c; i < c + some; ++i)
          narrowed_into(to + i * channel_step + p * step, from[p * from_step + i]);
  }
}

// Where the weights of a block of output channels lie, the "lanes", and where they go to.
struct WeightLayout {
  std::int64_t lane_step, channel_step, channels, taps;
  const std::int64_t *from, *to; // of each tap: the step to it in memory; how many packed vectors come before it
};

// Packs `some` of `width` lanes: to[(layout.to[tap] + channel) · width + lane]; the others are 0.
template <class S>
void pack_weights(const WeightLayout &layout, const S *w, std::int64_t some, std::int64_t width, Computed<S> *to) {
  using T = Computed<S>;
  constexpr int L = lanes<T>;
  // Values that lie one after the other are turned into columns: channels of a tap, or taps of a channel.
  const auto run = [&](const S *from, std::int64_t count, std::int64_t tap, std::int64_t channel, bool along_taps) {
    for (std::int64_t done = 0; done < count; done += L) {
      const std::int64_t wide = smaller(count - done, L), first_tap = tap, first_channel = channel;
      for (std::int64_t lane = 0; lane < width; lane += L) {
        Vector<T> rows[L];
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i) {
          const S *at = from + (lane + i) * layout.lane_step + done;
          rows[i] = lane + i >= some ? Vector<T>{} : wide == L ? load(at) : load(at, wide);
        }
        transpose<T>(rows);
        tap = first_tap, channel = first_channel;
        RECONV_UNROLLED
        for (int i = 0; i < L; ++i) {
          if (i < wide)
            store(to + (layout.to[tap] + channel) * width + lane, rows[i]);
          if (!along_taps || ++tap == layout.taps)
            tap = along_taps ? 0 : tap, ++channel;
        }
      }
    }
  };
  if (layout.lane_step == 1) { // they lie as they are wanted
    for (std::int64_t channel = 0; channel < layout.channels; ++channel)
      for (std::int64_t tap = 0; tap < layout.taps; ++tap) {
        T *packed = to + (layout.to[tap] + channel) * width;
        zeros(packed + some, width - some);
        converted(w + layout.from[tap] + channel * layout.channel_step, some, packed);
      }
    return;
  }
  bool in_order = layout.taps > 1;
  for (std::int64_t tap = 0; tap < layout.taps; ++tap)
    in_order = in_order && layout.from[tap] == tap;
  const std::int64_t channels = layout.channels;
  if (in_order && (channels == 1 || layout.channel_step == layout.taps))
    return run(w, channels * layout.taps, 0, 0, true);
  for (std::int64_t channel = 0; channel < channels && in_order; ++channel)
    run(w + channel * layout.channel_step, layout.taps, 0, channel, true);
  for (std::int64_t tap = 0; tap < layout.taps && !in_order; ++tap) {
    const S *from = w + layout.from[tap];
    if (layout.channel_step == 1) {
      run(from, channels, tap, 0, false);
      continue;
    }
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      T *packed = to + (layout.to[tap] + channel) * width;
      zeros(packed + some, width - some);
      read_row(from + channel * layout.channel_step, 1, layout.lane_step, 1, some, packed, 1);
    }
  }
}

} // namespace reconv::RECONV_ISA
