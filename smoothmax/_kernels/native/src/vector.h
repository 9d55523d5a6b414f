// Vectors of floats or doubles, as wide as the registers of the instruction set that this file is compiled for.
//
// They are the compiler's own vector types (GCC and Clang): arithmetic, comparisons and `mask ? a : b` work lane by
// lane, and nothing here depends on the processor but `bits`. Everything lives in a namespace named after the
// instruction set, because one library holds several copies of it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef SMOOTHMAX_TARGET
#define SMOOTHMAX_TARGET baseline
#endif

#ifndef SMOOTHMAX_VECTOR_BYTES
#if defined(__AVX512F__)
#define SMOOTHMAX_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SMOOTHMAX_VECTOR_BYTES 32
#else
#define SMOOTHMAX_VECTOR_BYTES 16
#endif
#endif

#define SMOOTHMAX_INLINE inline __attribute__((always_inline))

namespace smoothmax::SMOOTHMAX_TARGET {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES)));
  using Integer = int32_t;
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES)));
  using Integer = int64_t;
};

template <class T>
using Vec = typename Lanes<T>::Vector;
// What a comparison gives: all bits of a lane are set where it holds. Also the vector of integers as wide as T.
template <class T>
using Mask = typename Lanes<T>::Mask;
template <class T>
inline constexpr int64_t kWidth = SMOOTHMAX_VECTOR_BYTES / int64_t{sizeof(T)};

template <class T>
inline constexpr T kInf = std::numeric_limits<T>::infinity();
template <class T>
inline constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
template <class T>
inline constexpr T kEps = std::numeric_limits<T>::epsilon();

template <class T>
SMOOTHMAX_INLINE Vec<T> all(T value) {
  return Vec<T>{} + value;
}

template <class T>
SMOOTHMAX_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// The first n values, and `fill` in the other lanes.
template <class T>
SMOOTHMAX_INLINE Vec<T> load_first(const T* from, int64_t n, T fill) {
  Vec<T> v = all<T>(fill);
  for (int64_t i = 0; i < n; ++i) v[i] = from[i];
  return v;
}

// The vector at i of n values, and `fill` beyond them.
template <class T>
SMOOTHMAX_INLINE Vec<T> load_within(const T* from, int64_t i, int64_t n, T fill) {
  return i + kWidth<T> <= n ? load(from + i) : load_first(from + i, n - i, fill);
}

template <class T>
SMOOTHMAX_INLINE void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
SMOOTHMAX_INLINE void store_first(T* to, int64_t n, Vec<T> v) {
  for (int64_t i = 0; i < n; ++i) to[i] = v[i];
}

// What of the vector at i lies within n values.
template <class T>
SMOOTHMAX_INLINE void store_within(T* to, int64_t i, int64_t n, Vec<T> v) {
  i + kWidth<T> <= n ? store<T>(to + i, v) : store_first<T>(to + i, n - i, v);
}

// Calls f(i, v) for the vectors v of x at i = 0, kWidth, ...; the last is filled up.
template <class T, class F>
SMOOTHMAX_INLINE void each(const T* x, int64_t n, T fill, F&& f) {
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) f(i, load(x + i));
  if (i < n) f(i, load_first(x + i, n - i, fill));
}

// Stores f(i, v) for the vectors v of x.
template <class T, class F>
SMOOTHMAX_INLINE void map(const T* x, int64_t n, T fill, T* out, F&& f) {
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) store<T>(out + i, f(i, load(x + i)));
  if (i < n) store_first<T>(out + i, n - i, f(i, load_first(x + i, n - i, fill)));
}

// The greater and the smaller; where one of the two is NaN, b.
template <class V>
SMOOTHMAX_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}
template <class V>
SMOOTHMAX_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
template <class T>
SMOOTHMAX_INLINE Vec<T> positive(Vec<T> v) {
  return greater(v, Vec<T>{});
}

template <class T>
SMOOTHMAX_INLINE T largest(Vec<T> v) {
  T result = v[0];
  for (int64_t i = 1; i < kWidth<T>; ++i) result = greater<T>(v[i], result);
  return result;
}

// In double, pair by pair.
template <class T>
SMOOTHMAX_INLINE double sum(Vec<T> v) {
  double part[kWidth<T>];
  for (int64_t i = 0; i < kWidth<T>; ++i) part[i] = v[i];
  for (int64_t half = kWidth<T> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

// N sums over the vectors v of x: add(i, v, part) adds what is at i to the vectors part[0], ..., part[N - 1]. Blocks
// are added up in double, since many terms that are alike round in one direction.
template <class T, int64_t N, class F>
SMOOTHMAX_INLINE std::array<double, N> sums(const T* x, int64_t n, T fill, F&& add) {
  constexpr int64_t kBlock = 16 * kWidth<T>;
  std::array<double, N> result = {};
  for (int64_t start = 0; start < n; start += kBlock) {
    Vec<T> part[N] = {};
    each(x + start, std::min(kBlock, n - start), fill, [&](int64_t i, Vec<T> v) { add(start + i, v, part); });
    for (int64_t k = 0; k < N; ++k) result[k] += sum<T>(part[k]);
  }
  return result;
}

// The same for an array that is filled up to a whole vector.
template <class T, int64_t N, class F>
SMOOTHMAX_INLINE std::array<double, N> sums(const T* x, int64_t n, F&& add) {
  const int64_t whole = (n + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
  return sums<T, N>(x, whole, T{0}, add);
}

// A mask as an integer: bit i for lane i.
template <class T>
SMOOTHMAX_INLINE uint32_t bits(Mask<T> m) {
#if defined(__AVX512DQ__) && SMOOTHMAX_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)m);
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask((__m512i)m);
#elif defined(__AVX2__) && SMOOTHMAX_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m));
  if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)m));
#elif defined(__SSE2__) && SMOOTHMAX_VECTOR_BYTES == 16
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm_movemask_ps((__m128)m));
  if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(_mm_movemask_pd((__m128d)m));
#else
  uint32_t result = 0;
  for (int64_t i = 0; i < kWidth<T>; ++i) result |= static_cast<uint32_t>(m[i] & 1) << i;
  return result;
#endif
}

template <class T>
SMOOTHMAX_INLINE bool any(Mask<T> m) {
  return bits<T>(m) != 0;
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
