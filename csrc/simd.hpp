// Vectors of one instruction set. Each kernel file is compiled once per set, with RECONV_ISA and the compiler's flags.
//
// Nothing of the standard library's templates is used in these files: the linker keeps one copy of each instance, and
// it could be the one that another processor's instructions were used for.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "conv.hpp"

#ifndef RECONV_ISA
#error "RECONV_ISA must name the instruction set that this file is compiled for"
#endif

#if defined(__AVX512F__)
#define RECONV_VECTOR_BYTES 64
#elif defined(__AVX__)
#define RECONV_VECTOR_BYTES 32
#else // SSE2, NEON
#define RECONV_VECTOR_BYTES 16
#endif
#if defined(__AVX512F__) && __has_builtin(__builtin_ia32_loadups512_mask)
#define RECONV_MASKS // what immintrin.h calls; it alone takes as long to read as a small kernel to compile
#endif
#ifndef RECONV_REGISTERS // tiles are as large as they allow
#if defined(__AVX512F__) || defined(__aarch64__)
#define RECONV_REGISTERS 32
#else
#define RECONV_REGISTERS 16
#endif
#endif

namespace reconv::RECONV_ISA {

template <class T> struct VectorOf {
  typedef T type __attribute__((vector_size(RECONV_VECTOR_BYTES)));
};
template <class T> using Vector = typename VectorOf<T>::type;
template <class T> inline constexpr int lanes = RECONV_VECTOR_BYTES / sizeof(T);

// What a stored type is computed in.
template <class S> using Computed = std::conditional_t<std::is_same_v<S, bf16>, float, S>;

template <class S> [[gnu::always_inline]] inline Vector<Computed<S>> load(const S *from) {
  if constexpr (std::is_same_v<S, bf16>) { // the upper half of a float
    typedef std::uint16_t Half __attribute__((vector_size(RECONV_VECTOR_BYTES / 2)));
    Half half;
    std::memcpy(&half, from, sizeof half);
    return reinterpret_cast<Vector<float>>(__builtin_convertvector(half, Vector<std::uint32_t>) << 16);
  } else {
    Vector<S> v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
}

[[gnu::always_inline]] inline float widened(bf16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
[[gnu::always_inline]] inline float widened(float value) { return value; }
[[gnu::always_inline]] inline double widened(double value) { return value; }

// The first `count` lanes, fewer than all; the others are 0. Nothing beyond them is read.
template <class S> [[gnu::always_inline]] inline Vector<Computed<S>> load(const S *from, std::int64_t count) {
#ifdef RECONV_MASKS
  if constexpr (std::is_same_v<S, float>)
    return __builtin_ia32_loadups512_mask(from, Vector<S>{}, (1u << count) - 1);
  else if constexpr (std::is_same_v<S, double>)
    return __builtin_ia32_loadupd512_mask(from, Vector<S>{}, (1u << count) - 1);
#endif
  Vector<Computed<S>> v{};
  for (std::int64_t lane = 0; lane < count; ++lane)
    v[lane] = widened(from[lane]);
  return v;
}

// To the nearest, and of two to the even one, as torch rounds. NaN stays NaN.
[[gnu::always_inline]] inline auto narrowed(Vector<float> v) {
  typedef std::uint16_t Half __attribute__((vector_size(RECONV_VECTOR_BYTES / 2)));
  const auto bits = reinterpret_cast<Vector<std::uint32_t>>(v);
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector((v != v) ? Vector<std::uint32_t>{} + 0x7fc0 : rounded, Half);
}

template <class S> [[gnu::always_inline]] inline void store(S *to, Vector<Computed<S>> v) {
  if constexpr (std::is_same_v<S, bf16>) {
    const auto half = narrowed(v);
    std::memcpy(to, &half, sizeof half);
  } else
    std::memcpy(to, &v, sizeof v);
}

// The first `count` lanes, fewer than all.
template <class S> [[gnu::always_inline]] inline void store(S *to, Vector<Computed<S>> v, std::int64_t count) {
#ifdef RECONV_MASKS
  if constexpr (std::is_same_v<S, float>)
    return __builtin_ia32_storeups512_mask(to, v, (1u << count) - 1);
  else if constexpr (std::is_same_v<S, double>)
    return __builtin_ia32_storeupd512_mask(to, v, (1u << count) - 1);
#endif
  if constexpr (std::is_same_v<S, bf16>) {
    const auto half = narrowed(v);
    std::memcpy(to, &half, count * sizeof(S));
  } else
    for (std::int64_t lane = 0; lane < count; ++lane)
      to[lane] = v[lane];
}

[[gnu::always_inline]] inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
[[gnu::always_inline]] inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
[[gnu::always_inline]] inline std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T> [[gnu::always_inline]] inline T *copied(const T *from, std::int64_t count, T *to) {
  std::memcpy(to, from, count * sizeof(T));
  return to + count;
}

template <class T> [[gnu::always_inline]] inline T *zeros(T *to, std::int64_t count) {
  std::memset(to, 0, count * sizeof(T));
  return to + count;
}

inline std::atomic<std::int64_t> refused{0}; // bytes that could not be had, the last time

// Memory that a thread keeps from call to call.
struct Scratch {
  void *memory = nullptr;
  std::size_t size = 0;

  template <class T> T *of(std::int64_t count) {
    const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > size) {
      std::free(memory);
      memory = std::aligned_alloc(64, bytes);
      size = memory ? bytes : 0;
      if (!memory)
        refused = static_cast<std::int64_t>(bytes);
    }
    return static_cast<T *>(memory);
  }
  ~Scratch() { std::free(memory); }
};

// Before a loop of a few steps, whose number is known: it is written out, so that accumulators stay in registers.
#if defined(__clang__)
#define RECONV_UNROLLED _Pragma("clang loop unroll(full)")
#else
#define RECONV_UNROLLED _Pragma("GCC unroll 64")
#endif

// The same where a step's number must be a constant. It takes far longer to compile.
template <int N, class F> [[gnu::always_inline]] inline void unrolled(F &&body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

template <class T> using Lane = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>; // its number

// Lane l of the result is lane l ^ R.
template <int R, class T> [[gnu::always_inline]] inline Vector<T> swapped(Vector<T> v) {
  Vector<Lane<T>> from{};
  for (int lane = 0; lane < lanes<T>; ++lane)
    from[lane] = lane ^ R;
  return __builtin_shuffle(v, from);
}

// Which lanes of two rows, one after the other, are two rows whose neighbouring blocks of lanes are exchanged.
template <class T> struct Exchange {
  Vector<Lane<T>> low, high;
};

// Calls body(half, exchange) for blocks of half = 1, 2, 4, … lanes.
template <class T, class F> [[gnu::always_inline]] inline void by_halves(F &&body) {
  unrolled<__builtin_ctz(lanes<T>)>([&](auto stage) __attribute__((always_inline)) {
    constexpr int half = 1 << stage;
    Exchange<T> which{};
    RECONV_UNROLLED
    for (int j = 0; j < lanes<T>; ++j) {
      which.low[j] = j & half ? lanes<T> + j - half : j;
      which.high[j] = j & half ? lanes<T> + j : j + half;
    }
    body(half, which);
  });
}

// Turns lanes<T> rows into columns, by halves: first neighbours are exchanged, then pairs, …
template <class T> [[gnu::always_inline]] inline void transpose(Vector<T> (&rows)[lanes<T>]) {
  by_halves<T>([&](int half, const Exchange<T> &which) __attribute__((always_inline)) {
    RECONV_UNROLLED
    for (int i = 0; i < lanes<T>; ++i)
      if (!(i & half)) {
        const Vector<T> a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, which.low), rows[i + half] = __builtin_shuffle(a, b, which.high);
      }
  });
}

} // namespace reconv::RECONV_ISA
