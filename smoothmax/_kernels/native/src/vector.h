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
#include <utility>

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
  typedef int8_t Bytes __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES / sizeof(float))));
  using Integer = int32_t;
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES)));
  typedef int8_t Bytes __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES / sizeof(double))));
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

// The least multiple of `step` that is not below n.
constexpr int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

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

// The first n values, and `fill` in the other lanes, whose memory is not read.
template <class T>
SMOOTHMAX_INLINE Vec<T> load_first(const T* from, int64_t n, T fill) {
#if defined(__AVX512F__) && SMOOTHMAX_VECTOR_BYTES == 64
  const uint32_t first = (uint32_t{1} << n) - 1;
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_mask_loadu_ps((__m512)all<T>(fill), __mmask16(first), from);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_mask_loadu_pd((__m512d)all<T>(fill), __mmask8(first), from);
#else
  Vec<T> v = all<T>(fill);
  for (int64_t i = 0; i < n; ++i) v[i] = from[i];
  return v;
#endif
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
#if defined(__AVX512F__) && SMOOTHMAX_VECTOR_BYTES == 64
  const uint32_t first = (uint32_t{1} << n) - 1;
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, __mmask16(first), (__m512)v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(to, __mmask8(first), (__m512d)v);
#else
  for (int64_t i = 0; i < n; ++i) to[i] = v[i];
#endif
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
template <class V>
SMOOTHMAX_INLINE V magnitude(V v) {
  return greater(v, -v);
}
template <class T>
SMOOTHMAX_INLINE Vec<T> positive(Vec<T> v) {
  return greater(v, Vec<T>{});
}

// Lanes of a and b, which are counted on from those of a: lane i is lane `From::lane(i)` of the two.
template <class T, class From, size_t... kLane>
SMOOTHMAX_INLINE Vec<T> chosen(Vec<T> a, Vec<T> b, std::index_sequence<kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, From::lane(kLane)...);
#else
  return __builtin_shuffle(a, b, Mask<T>{From::lane(kLane)...});
#endif
}
template <class T, class From>
SMOOTHMAX_INLINE Vec<T> chosen(Vec<T> a, Vec<T> b) {
  return chosen<T, From>(a, b, std::make_index_sequence<kWidth<T>>{});
}

// The lanes moved down by `kBy`; those that fall out at the bottom come in at the top.
template <int64_t kBy, int64_t kLanes>
struct Turned {
  static constexpr int64_t lane(int64_t i) { return (i + kBy) % kLanes; }
};

// All lanes into one, pair by pair: lane i and lane i + kBy, and so on with half as many.
template <class T, int64_t kBy = kWidth<T> / 2, class F>
SMOOTHMAX_INLINE T folded(Vec<T> v, F&& join) {
  if constexpr (kBy == 0) {
    return v[0];
  } else {
    return folded<T, kBy / 2>(join(v, chosen<T, Turned<kBy, kWidth<T>>>(v, v)), join);
  }
}

template <class T>
SMOOTHMAX_INLINE T largest(Vec<T> v) {
  return folded<T>(v, greater<Vec<T>>);
}

// The lanes of a Vec<T> in double.
template <class T>
struct Wide {
  static constexpr int64_t kParts = sizeof(double) / sizeof(T);
  Vec<double> part[kParts];

  double of_lane(int64_t lane) const { return part[lane / kWidth<double>][lane % kWidth<double>]; }
  void set_lane(int64_t lane, double value) { part[lane / kWidth<double>][lane % kWidth<double>] = value; }
};
// As many floats, or integers of their width, as there are lanes of double.
typedef float HalfVector __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES / 2)));
typedef int32_t HalfIntegers __attribute__((vector_size(SMOOTHMAX_VECTOR_BYTES / 2)));

template <class T>
SMOOTHMAX_INLINE Wide<T> widened(Vec<T> v) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return {{v}};
  } else {
    HalfVector half[2];
    std::memcpy(half, &v, sizeof v);
    return {{__builtin_convertvector(half[0], Vec<double>), __builtin_convertvector(half[1], Vec<double>)}};
  }
}
template <class T>
SMOOTHMAX_INLINE Vec<T> narrowed(const Wide<T>& wide) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return wide.part[0];
  } else {
    const HalfVector half[2] = {__builtin_convertvector(wide.part[0], HalfVector),
                                __builtin_convertvector(wide.part[1], HalfVector)};
    Vec<T> v;
    std::memcpy(&v, half, sizeof v);
    return v;
  }
}
// The lanes of a mask, for the parts of a Wide.
template <class T>
SMOOTHMAX_INLINE std::array<Mask<double>, Wide<T>::kParts> widened_mask(Mask<T> mask) {
  const Wide<T> ones = widened<T>(mask ? all<T>(1) : Vec<T>{});
  std::array<Mask<double>, Wide<T>::kParts> result;
  for (int64_t k = 0; k < Wide<T>::kParts; ++k) result[k] = ones.part[k] != Vec<double>{};
  return result;
}
// Rounded to T.
template <class T>
SMOOTHMAX_INLINE double rounded(double v) {
  return static_cast<double>(static_cast<T>(v));
}
template <class T>
SMOOTHMAX_INLINE Vec<double> rounded(Vec<double> v) {
  if constexpr (sizeof(T) == sizeof(double)) return v;
  return __builtin_convertvector(__builtin_convertvector(v, HalfVector), Vec<double>);
}

// In double, pair by pair.
template <class T>
SMOOTHMAX_INLINE double sum(Vec<T> v) {
  const Wide<T> wide = widened<T>(v);
  return folded<double>(wide.part[0] + (Wide<T>::kParts == 2 ? wide.part[1] : Vec<double>{}),
                        [](Vec<double> a, Vec<double> b) { return a + b; });
}

// So many terms are added up in T, and the sums of such blocks in double: many that are alike round in one direction.
constexpr int64_t kBlock = 16;

// N sums over the vectors v of x: add(i, v, part) adds what is at i to the vectors part[0], ..., part[N - 1].
template <class T, int64_t N, class F>
SMOOTHMAX_INLINE std::array<double, N> sums(const T* x, int64_t n, T fill, F&& add) {
  constexpr int64_t kScores = kBlock * kWidth<T>;
  std::array<double, N> result = {};
  for (int64_t start = 0; start < n; start += kScores) {
    Vec<T> part[N] = {};
    each(x + start, std::min(kScores, n - start), fill, [&](int64_t i, Vec<T> v) { add(start + i, v, part); });
    for (int64_t k = 0; k < N; ++k) result[k] += sum<T>(part[k]);
  }
  return result;
}

// The same for an array that is filled up to a whole vector.
template <class T, int64_t N, class F>
SMOOTHMAX_INLINE std::array<double, N> sums(const T* x, int64_t n, F&& add) {
  return sums<T, N>(x, rounded_up(n, kWidth<T>), T{0}, add);
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

// A bit for each lane, where lanes are rows.
using Bits = uint16_t;

// The mask whose lanes are the bits.
template <class T>
SMOOTHMAX_INLINE Mask<T> lanes(Bits bits) {
  Mask<T> own = {};
  for (int64_t lane = 0; lane < kWidth<T>; ++lane) own[lane] = typename Lanes<T>::Integer{1} << lane;
  return ((Mask<T>{} + bits) & own) != Mask<T>{};
}

// For each set of eight lanes, those lanes one after the other, a byte each.
struct LaneTable {
  uint64_t of[256];
  constexpr LaneTable() : of() {
    for (uint64_t hit = 0; hit < 256; ++hit) {
      for (uint64_t lane = 0, byte = 0; lane < 8; ++lane) {
        if (hit >> lane & 1) of[hit] |= lane << 8 * byte++;
      }
    }
  }
};
inline constexpr LaneTable kLanes;

// Writes the lanes of v that `hit` has a bit for, and their positions, that of lane 0 being i, one after the other;
// returns how many there are. There must be room for a whole vector of each.
template <class T>
SMOOTHMAX_INLINE int64_t pack(uint32_t hit, Vec<T> v, int32_t i, T* values, int32_t* positions) {
#if defined(__AVX512F__) && SMOOTHMAX_VECTOR_BYTES == 64
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(positions,
                      _mm512_maskz_compress_epi32(__mmask16(hit), _mm512_add_epi32(lane, _mm512_set1_epi32(i))));
  if constexpr (sizeof(T) == 4) _mm512_storeu_ps(values, _mm512_maskz_compress_ps(__mmask16(hit), (__m512)v));
  if constexpr (sizeof(T) == 8) _mm512_storeu_pd(values, _mm512_maskz_compress_pd(__mmask8(hit), (__m512d)v));
  return __builtin_popcount(hit);
#else
#if defined(__AVX2__) && SMOOTHMAX_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kLanes.of[hit])));
    _mm256_storeu_ps(values, _mm256_permutevar8x32_ps((__m256)v, lane));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions), _mm256_add_epi32(lane, _mm256_set1_epi32(i)));
    return __builtin_popcount(hit);
  }
#endif
  int64_t n = 0;
  for (int64_t lane = 0; lane < kWidth<T>; ++lane, hit >>= 1) {
    values[n] = v[lane];
    positions[n] = i + static_cast<int32_t>(lane);
    n += hit & 1;
  }
  return n;
#endif
}

template <class T>
SMOOTHMAX_INLINE bool any(Mask<T> m) {
  return bits<T>(m) != 0;
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
