// How many multiply-accumulates a core does when nothing but registers is in the way: what rooflines are drawn from.
#include "simd.hpp"

namespace reconv::RECONV_ISA {

namespace {
constexpr int chains = 12; // of dependent sums: more than latency × units of a core, and each in its register
constexpr int steps = 64;
} // namespace

// Returns the multiply-accumulates of `rounds` rounds.
template <class T> std::int64_t peak(std::int64_t rounds) {
  volatile T given = T(0.5); // twice read, so that the compiler knows neither value
  const Vector<T> factor = Vector<T>{} + given, term = Vector<T>{} + given;
  Vector<T> sums[chains];
  unrolled<chains>([&](auto i) { sums[i] = factor * T(i); });
  for (std::int64_t round = 0; round < rounds; ++round)
    for (int step = 0; step < steps; ++step)
      unrolled<chains>([&](auto i) { sums[i] = sums[i] * factor + term; });
  Vector<T> total{};
  unrolled<chains>([&](auto i) { total += sums[i]; });
  given = total[0];
  return rounds * steps * chains * lanes<T>;
}

template std::int64_t peak<float>(std::int64_t);
template std::int64_t peak<double>(std::int64_t);

} // namespace reconv::RECONV_ISA
