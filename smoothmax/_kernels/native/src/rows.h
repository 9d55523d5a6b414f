// What the kernels do with a row before they solve it, and the memory that they work in.
#pragma once

#include <cstdlib>
#include <cstring>

#include "vector.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// Working memory of one thread: arrays of n values and room for one vector more, so that whole vectors can be written.
template <class T>
class Array {
 public:
  explicit Array(int64_t n) : data_(static_cast<T*>(std::malloc(sizeof(T) * static_cast<size_t>(n) + kSlack))) {
#ifdef SMOOTHMAX_POISON  // for tests: what is read before it is written is NaN, or -1
    std::memset(data_, 0xFF, sizeof(T) * static_cast<size_t>(n) + kSlack);
#endif
  }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  operator T*() const { return data_; }

 private:
  static constexpr size_t kSlack = 64 * 8;  // a vector of int64, whatever T is
  T* data_;
};

template <class T>
struct Seen {
  T top;        // the largest score, -inf where all are deleted
  bool broken;  // NaN or +inf is among the scores
};

template <class T>
SMOOTHMAX_INLINE Seen<T> look(const T* x, int64_t d) {
  Vec<T> top = all<T>(-kInf<T>);
  Mask<T> usable = ~Mask<T>{};
  each(x, d, -kInf<T>, [&](int64_t, Vec<T> v) {
    top = greater(v, top);
    usable &= v < all<T>(kInf<T>);
  });
  return {largest<T>(top), any<T>(~usable)};
}

template <class T>
SMOOTHMAX_INLINE void fill(T* out, int64_t d, T value) {
  for (int64_t i = 0; i < d; ++i) out[i] = value;
}

// Scores times b / gamma. Where a float of 32 bits might not hold that number, or not the inverse of gamma, they are
// brought to a middle size first: so very low ones may become -inf, and very near ones 0.
template <class V>
struct Scaling {
  V first, second;

  template <class X>
  SMOOTHMAX_INLINE X operator()(X v) const {
    return v * first * second;
  }
};

template <class T>
Scaling<T> over_gamma(double b, T gamma) {
  const T large = std::sqrt(std::numeric_limits<T>::max());
  const T first = gamma > large ? 1 / large : gamma < 1 / large ? large : T{1};
  return {first, static_cast<T>(b / (static_cast<double>(gamma) * first))};
}

// The scores that may get weight, and where they were: the search for a threshold need not look at the others.
template <class T>
struct Kept {
  T* s;         // (x - top) * b / gamma, a whole number of vectors: those beyond n are so low that they get no weight
  int32_t* at;  // their positions in the row
  T* y;         // their weights, as they are found
  int64_t n;
};

template <class T>
SMOOTHMAX_INLINE Kept<T> keep_above(T lowest, const T* x, int64_t d, T top, Scaling<T> scale, T* s, int32_t* at, T* y) {
  int64_t n = 0;
  each(x, d, -kInf<T>, [&](int64_t i, Vec<T> v) {
    v = scale(v - top);
    uint32_t hit = bits<T>(v > all<T>(lowest));
    if (hit == 0) return;
    n += pack<T>(hit, v, static_cast<int32_t>(i), s + n, at + n);
  });
  constexpr T kNowhere = -4;
  store(s + n, all<T>(kNowhere + lowest));
  return {s, at, y, n};
}

// How near to 1 the sum of weights is that arrived.
constexpr double kNearly = 0.1;

// Writes the weights of the kept scores, divided by their sum `total`, and zeros elsewhere. It should be 1, but for
// rounding, unless they are only in proportion; NaN where it is not: what did not arrive is no answer.
template <class T>
SMOOTHMAX_INLINE void give_back(const Kept<T>& kept, double total, bool in_proportion, T* out, int64_t d) {
  if (!(in_proportion ? total > 0 : std::abs(total - 1) < kNearly)) return fill(out, d, kNaN<T>);
  T factor = static_cast<T>(1 / total);
  if (kept.n == d) return map(kept.y, d, T{0}, out, [&](int64_t, Vec<T> y) { return y * factor; });
  fill(out, d, T{0});
  for (int64_t i = 0; i < kept.n; ++i) out[kept.at[i]] = kept.y[i] * factor;
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
