// Rows side by side: as many as a vector has lanes, a lane each, so that nothing is summed or compared across lanes.
#pragma once

#include "vector.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// Of two rows of a square that are `kHalf` apart, what belongs to the first and to the second once it is transposed.
template <int64_t kHalf, int64_t kLanes>
struct First {
  static constexpr int64_t lane(int64_t i) { return i & kHalf ? kLanes + i - kHalf : i; }
};
template <int64_t kHalf, int64_t kLanes>
struct Second {
  static constexpr int64_t lane(int64_t i) { return i & kHalf ? kLanes + i : i + kHalf; }
};

// Makes columns of rows: two quarters of the square change places, and then those of each quarter.
template <class T, int64_t kHalf = kWidth<T> / 2>
SMOOTHMAX_INLINE void transpose(Vec<T>* rows) {
  if constexpr (kHalf > 0) {
    for (int64_t i = 0; i < kWidth<T>; ++i) {
      if (i & kHalf) continue;
      const Vec<T> a = rows[i], b = rows[i + kHalf];
      rows[i] = chosen<T, First<kHalf, kWidth<T>>>(a, b);
      rows[i + kHalf] = chosen<T, Second<kHalf, kWidth<T>>>(a, b);
    }
    transpose<T, kHalf / 2>(rows);
  }
}

// What is at position i of every row is one vector: calls put(i, v) for all i < d, and some beyond up to a multiple of
// the lanes. from(lane, i) are the values of a row from i on.
template <class T, class From, class Put>
SMOOTHMAX_INLINE void rows_to_columns(int64_t d, From&& from, Put&& put) {
  for (int64_t i = 0; i < d; i += kWidth<T>) {
    Vec<T> square[kWidth<T>];
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) square[lane] = from(lane, i);
    transpose<T>(square);
    for (int64_t k = 0; k < kWidth<T>; ++k) put(i + k, square[k]);
  }
}

// The other way, for the first n rows: get(i) is the vector at position i, to(lane, i, v) takes the values of a row.
template <class T, class Get, class To>
SMOOTHMAX_INLINE void columns_to_rows(int64_t n, int64_t d, Get&& get, To&& to) {
  for (int64_t i = 0; i < d; i += kWidth<T>) {
    Vec<T> square[kWidth<T>];
    for (int64_t k = 0; k < kWidth<T>; ++k) square[k] = i + k < d ? get(i + k) : Vec<T>{};
    transpose<T>(square);
    for (int64_t lane = 0; lane < n; ++lane) to(lane, i, square[lane]);
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
