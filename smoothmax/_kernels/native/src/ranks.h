// Penalties that weigh the ranks: sort, subtract the weights, take the non-increasing regression, put back. See
// smoothmax/_solvers/_sorting.py.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "sort.h"

namespace smoothmax::SMOOTHMAX_TARGET {

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
  Sorter<T> sorted(d);
  Array<T> values(d), z(d);
  Array<Pool> pools(d);
  for (int64_t row = begin; row < end; ++row) {
    const T *x = problem.x + row * d, *weights = problem.weights.row(row);
    T* t = problem.t + row * d;
    int32_t* order = problem.order + row * d;
    int8_t* ties = problem.ties + row * d;
    const Seen<T> seen = look(x, d);
    sorted(x, d, order);
    const T top = seen.top == -kInf<T> ? T{0} : seen.top;
    int64_t n = 0;  // those that are not deleted come first
    T size = 0;
    bool broken = seen.broken;
    for (int64_t k = 0; k < d; ++k) {
      ties[k] = 0;
      values[k] = x[order[k]] - top;  // before the weights are, which a large offset would swallow
      z[k] = values[k] - weights[k];
      broken |= std::isnan(weights[k]);
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
