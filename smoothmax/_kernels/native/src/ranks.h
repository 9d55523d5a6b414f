// Penalties that weigh the ranks: sort, subtract the weights, take the non-increasing regression, put back. See
// smoothmax/_solvers/_sorting.py.
#pragma once

#include "kernels.h"
#include "pools.h"
#include "rows.h"
#include "sort.h"

namespace smoothmax::SMOOTHMAX_TARGET {

template <class T>
void ranks(const Ranks<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Sorter<T> sorter(problem.x, d, end);
  Array<T> z(d);
  Pools pools(d);
  for (int64_t row = begin; row < end; ++row) {
    const T* weights = problem.weights.row(row);
    T* t = problem.t + row * d;
    int8_t* ties = problem.ties + row * d;
    sorter.go_to(row);
    const int32_t* order = sorter.order();
    const T* values = sorter.values();
    std::memcpy(problem.order + row * d, order, sizeof(int32_t) * static_cast<size_t>(d));
    const T top = values[0] == -kInf<T> ? T{0} : values[0];
    // The sums are taken before the weights are, which a large offset would swallow.
    Mask<T> broken = {};
    Vec<T> sizes = {};
    each(values, d, -kInf<T>, [&](int64_t i, Vec<T> v) {
      const Vec<T> weight = load_within(weights, i, d, T{0}), value = (v - top) - weight;
      const Mask<T> there = v != all<T>(-kInf<T>);
      store<T>(z + i, value);
      sizes = there ? greater(magnitude(value), sizes) : sizes;
      broken |= (weight != weight) | (there & ~(magnitude(value) < all<T>(kInf<T>)));
    });
    fill(ties, d, int8_t{0});
    if (any<T>(broken)) {
      fill(t, d, kNaN<T>);
      continue;
    }
    int64_t n = d;  // those that are deleted come last
    for (; n > 0 && values[n - 1] == -kInf<T>; --n) t[order[n - 1]] = -kInf<T>;
    if (n == 0) continue;
    const T size = largest<T>(sizes);
    pools.pool(static_cast<T*>(z), n, static_cast<double>(2 * kEps<T> * size), ties);
    for (int64_t k = 0; k < n; ++k) {
      if (ties[k] != 0) continue;  // alone, or the last of its pool
      const int64_t first = k;
      double sum = z[k];
      do sum += z[++k];
      while (ties[k] == 0);
      const T mean = static_cast<T>(sum / static_cast<double>(k + 1 - first));
      // Equal scores under equal weights are equal too, but not held together: where nothing else pooled them, each
      // moves with its own score.
      for (int64_t i = first; i < k; ++i) {
        const bool same = values[i + 1] == values[i] && weights[i + 1] == weights[i];
        if (same && std::abs(mean - z[i + 1]) <= 4 * kEps<T> * size) ties[i] = -1;
      }
      for (int64_t i = first; i <= k; ++i) z[i] = mean;
    }
    ties[n - 1] = 0;
    for (int64_t k = 0; k < n; ++k) t[order[k]] = z[k] + top;
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
