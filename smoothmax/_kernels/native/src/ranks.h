// Penalties that weigh the ranks: sort, subtract the weights, take the non-increasing regression, put back. See
// smoothmax/_solvers/_sorting.py.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

template <class T>
struct Key {
  using Unsigned = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Unsigned key;  // in the order of the scores from the largest down
  int32_t at;

  // A float's bits are in its order, but for the sign: negative ones run the other way.
  static Unsigned of(T x) {
    constexpr Unsigned kSign = Unsigned{1} << (8 * sizeof(T) - 1);
    Unsigned bits;
    x += T{0};  // 0 for -0
    std::memcpy(&bits, &x, sizeof bits);
    return bits & kSign ? bits : ~(bits | kSign);
  }
};

// Sorts by insertion if there are few, and else byte by byte. Stable.
template <class T>
void sort(Key<T>* keys, Key<T>* other, int64_t d) {
  constexpr int64_t kFew = 32;
  constexpr int kBytes = sizeof(T);
  if (d <= kFew) {
    for (int64_t i = 1; i < d; ++i) {
      const Key<T> key = keys[i];
      int64_t j = i;
      for (; j > 0 && keys[j - 1].key > key.key; --j) keys[j] = keys[j - 1];
      keys[j] = key;
    }
    return;
  }
  int32_t counts[kBytes][256] = {};
  for (int64_t i = 0; i < d; ++i) {
    for (int byte = 0; byte < kBytes; ++byte) ++counts[byte][keys[i].key >> (8 * byte) & 255];
  }
  Key<T>* from = keys;
  for (int byte = 0; byte < kBytes; ++byte) {
    int32_t* count = counts[byte];
    if (count[from[0].key >> (8 * byte) & 255] == d) continue;  // all have this byte
    int32_t before = 0;
    for (int value = 0; value < 256; ++value) {
      const int32_t n = count[value];
      count[value] = before;
      before += n;
    }
    for (int64_t i = 0; i < d; ++i) other[count[from[i].key >> (8 * byte) & 255]++] = from[i];
    std::swap(from, other);
  }
  if (from != keys) std::memcpy(keys, from, sizeof(Key<T>) * static_cast<size_t>(d));
}

struct Pool {
  double sum;
  int64_t size;
  double mean;
};

// Non-increasing regression of z[0..n) by pooling neighbours out of order; returns the pools in order.
template <class T>
int64_t pool(const T* z, int64_t n, double slack, Pool* pools) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    Pool last = {z[i], 1, z[i]};
    while (count > 0 && pools[count - 1].mean <= last.mean + slack) {
      --count;
      last.sum += pools[count].sum;
      last.size += pools[count].size;
      last.mean = last.sum / static_cast<double>(last.size);
    }
    pools[count++] = last;
  }
  return count;
}

template <class T>
void ranks(const Ranks<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Array<Key<T>> keys(d), other(d);
  Array<T> values(d), z(d);
  Array<Pool> pools(d);
  for (int64_t row = begin; row < end; ++row) {
    const T *x = problem.x + row * d, *weights = problem.weights + (problem.weights_rows == 1 ? 0 : row) * d;
    T* t = problem.t + row * d;
    int32_t* order = problem.order + row * d;
    int8_t* ties = problem.ties + row * d;
    const Seen<T> seen = look(x, d);
    for (int64_t i = 0; i < d; ++i) keys[i] = {Key<T>::of(x[i]), static_cast<int32_t>(i)};
    sort(static_cast<Key<T>*>(keys), static_cast<Key<T>*>(other), d);
    const T top = seen.top == -kInf<T> ? T{0} : seen.top;
    int64_t n = 0;  // those that are not deleted come first
    T size = 0;
    bool broken = seen.broken;
    for (int64_t k = 0; k < d; ++k) {
      order[k] = keys[k].at;
      ties[k] = 0;
      values[k] = x[order[k]] - top;  // before the weights are, which a large offset would swallow
      z[k] = values[k] - weights[k];
      if (x[order[k]] == -kInf<T>) continue;
      n = k + 1;
      size = std::max(size, std::abs(z[k]));
      broken |= !(std::abs(z[k]) < kInf<T>);
    }
    if (broken) {
      fill(t, d, kNaN<T>);
      continue;
    }
    for (int64_t k = n; k < d; ++k) t[order[k]] = -kInf<T>;
    const int64_t count = pool(static_cast<T*>(z), n, static_cast<double>(2 * kEps<T> * size), pools);
    for (int64_t k = 0, j = 0; j < count; ++j) {
      const T mean = static_cast<T>(pools[j].mean);
      for (const int64_t stop = k + pools[j].size; k < stop; ++k) {
        t[order[k]] = mean + top;
        if (k + 1 == n) continue;
        // Equal scores under equal weights are equal too, but not held together: where nothing else pooled them, each
        // moves with its own score.
        const bool tied = values[k + 1] == values[k] && weights[k + 1] == weights[k];
        const bool unmoved = k + 1 < stop && std::abs(mean - z[k + 1]) <= 4 * kEps<T> * size;
        ties[k] = k + 1 == stop || (tied && unmoved) ? -1 : 0;
      }
    }
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
