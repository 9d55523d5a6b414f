// The problems, and for each instruction set a table of functions that solve them.
//
// Every function solves the rows [begin, end) of its problem. Rows are independent, so how they are cut up among
// threads cannot change a result. Arrays are dense, the slice last. What the
// problems are, and the mathematics, stands with the reference: smoothmax/_solvers.
#pragma once

#include <cstdint>

namespace smoothmax {

// A hyper-parameter: some values for each row, or the same for all.
template <class T>
struct PerRow {
  const T* values;
  int64_t size;  // values for a row: one, or one for each position
  int64_t step;  // from one row's to the next one's: 0 where all rows share them

  const T* row(int64_t i) const { return values + i * step; }
  T operator[](int64_t i) const { return *row(i); }
};

template <class T>
struct Threshold {  // also the p-norm, whose p takes the place of alpha
  const T* x;
  PerRow<T> gamma, alpha;
  T* y;
  int64_t d;
};

template <class T>
struct Capped {
  const T* x;
  PerRow<T> gamma, alpha, total, upper;
  T* y;
  int64_t d;
};

template <class T>
struct ThresholdProduct {
  const T *y, *v;
  PerRow<T> alpha, scale;
  T* out;
  int64_t d;
};

template <class T>
struct Chain {
  const T* x;
  PerRow<T> up, down;
  T* t;
  int8_t* jumps;
  int64_t d;
};

template <class T>
struct SegmentMean {
  const T* v;
  const int8_t* jumps;
  const T* weight;
  T* mean;
  int64_t d;
};

template <class T>
struct Ranks {
  const T* x;
  PerRow<T> weights;
  T* t;
  int32_t* order;
  int8_t* ties;
  int64_t d;
};

template <class T>
struct Sort {
  const T* x;
  T* values;
  int32_t* rank;
  int64_t d;
};

template <class T>
struct Permutahedron {
  const T* x;
  PerRow<T> gamma, weights;
  T* y;
  int32_t* order;
  int8_t* ties;
  int64_t d;
};

template <class T>
struct GroupMean {
  const T* v;
  const int32_t* order;
  const int8_t* ties;
  const T* weight;
  T* mean;
  int64_t d;
};

// All problems: the name of the handler, which is that of the kernel too, and what it solves.
// clang-format off
#define SMOOTHMAX_PROBLEMS(of)            \
  of(threshold, Threshold)                \
  of(p_norm, Threshold)                   \
  of(capped, Capped)                      \
  of(threshold_product, ThresholdProduct) \
  of(p_norm_product, ThresholdProduct)    \
  of(chain, Chain)                        \
  of(segment_mean, SegmentMean)           \
  of(ranks, Ranks)                        \
  of(sort, Sort)                          \
  of(permutahedron, Permutahedron)        \
  of(group_mean, GroupMean)
// clang-format on

template <class T>
struct Table {
#define SMOOTHMAX_FIELD(name, Problem) void (*name)(const Problem<T>&, int64_t begin, int64_t end);
  SMOOTHMAX_PROBLEMS(SMOOTHMAX_FIELD)
#undef SMOOTHMAX_FIELD
};

struct Kernels {
  const char* name;
  int64_t vector_bytes;
  Table<float> f32;
  Table<double> f64;
};

template <class T>
const Table<T>& table(const Kernels& kernels) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return kernels.f32;
  } else {
    return kernels.f64;
  }
}

}  // namespace smoothmax
