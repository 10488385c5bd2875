// Which taps meet which positions along one axis.
//
// Forward, all positions meet all taps. Of the input gradient, the positions of one residue modulo the stride meet taps
// that are an arithmetic progression: a phase. In it the output is read with stride 1 and the taps in reverse.
#pragma once

#include "simd.hpp"

namespace reconv::RECONV_ISA {

// What the positions first + step·t of an axis are computed from: tap j, which is tap first_tap + tap_step·j of the
// kernel, reads from + from_step·t + reach·j.
struct Phase {
  std::int64_t count, first, step, from, from_step, taps, reach, first_tap, tap_step;
  std::int64_t taps_before; // of the phases before this one
};

struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end > begin ? end - begin : 0; }
};

inline Phase forward_phase(const Axis &a) {
  return {a.output, 0, 1, -a.before, a.stride, a.kernel, a.dilation, 0, 1, 0};
}

inline Phase gradient_phase(const Axis &a, std::int64_t residue) {
  std::int64_t divisor = a.stride, rest = a.dilation; // the greatest common one
  while (rest) {
    const std::int64_t next = divisor % rest;
    divisor = rest, rest = next;
  }
  const std::int64_t period = a.stride / divisor;
  std::int64_t tap = 0;
  while (tap < period && (residue + a.before - a.dilation * tap) % a.stride)
    ++tap;
  const std::int64_t taps = tap < period && tap < a.kernel ? (a.kernel - 1 - tap) / period + 1 : 0;
  const std::int64_t last = tap + (taps - 1) * period;
  return {divided_up(larger(a.input - residue, 0), a.stride), residue, a.stride,
          (residue + a.before - a.dilation * last) / a.stride, 1, taps, a.dilation / divisor, last, -period, 0};
}

// Where taps may be read for some positions of a phase.
inline Range reads(const Phase &phase, Range t) {
  if (!phase.taps || !t.size())
    return {0, 0};
  return {phase.from + phase.from_step * t.begin,
          phase.from + phase.from_step * (t.end - 1) + phase.reach * (phase.taps - 1) + 1};
}

inline Range joined(Range a, Range b) {
  if (!a.size() || !b.size())
    return a.size() ? a : b;
  return {smaller(a.begin, b.begin), larger(a.end, b.end)};
}

inline Range inside(Range r, std::int64_t size) {
  return {smaller(larger(r.begin, 0), size), larger(smaller(r.end, size), 0)};
}

// The taps that a position meets inside of the map.
inline Range taps_inside(const Phase &phase, std::int64_t t, std::int64_t size) {
  const std::int64_t from = phase.from + phase.from_step * t;
  Range taps{0, phase.taps};
  while (taps.begin < taps.end && from + phase.reach * taps.begin < 0)
    ++taps.begin;
  while (taps.begin < taps.end && from + phase.reach * (taps.end - 1) >= size)
    --taps.end;
  return taps;
}

} // namespace reconv::RECONV_ISA
