// Sorting, the projection onto the permutahedron, and means over groups in sorted order. See
// smoothmax/_solvers/_permutahedron.py and _sorting.py.
#pragma once

#include "kernels.h"
#include "pools.h"
#include "rows.h"
#include "sort.h"

namespace smoothmax::SMOOTHMAX_TARGET {

template <class T>
void sort(const Sort<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Sorter<T> sorter(problem.x, d, end);
  for (int64_t row = begin; row < end; ++row) {
    sorter.go_to(row);
    std::memcpy(problem.values + row * d, sorter.values(), sizeof(T) * static_cast<size_t>(d));
    const int32_t* order = sorter.order();
    for (int64_t k = 0; k < d; ++k) problem.rank[row * d + order[k]] = static_cast<int32_t>(k);
  }
}

// The largest and the smallest weight of a row, and their sum.
template <class T>
struct Weights {
  double high = -kInf<double>, low = kInf<double>, sum = 0;

  Weights(const T* weights, int64_t d) {
    for (int64_t k = 0; k < d; ++k) {
      high = std::max<double>(high, weights[k]);
      low = std::min<double>(low, weights[k]);
      sum += weights[k];
    }
  }
};

template <class T>
void permutahedron(const Permutahedron<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Sorter<T> sorter(problem.x, d, end);
  Array<double> z(d), moved(d);
  Pools pools(d);
  Weights<T> known(problem.weights.row(begin), d);
  for (int64_t row = begin; row < end; ++row) {
    const T* weights = problem.weights.row(row);
    const double gamma = problem.gamma[row];
    T* y = problem.y + row * d;
    int8_t* ties = problem.ties + row * d;
    sorter.go_to(row);
    const int32_t* order = sorter.order();
    const T* x = sorter.values();
    std::memcpy(problem.order + row * d, order, sizeof(int32_t) * static_cast<size_t>(d));
    fill(ties, d, int8_t{0});
    if (problem.weights.step != 0) known = Weights<T>(weights, d);
    // NaN is sorted to either end, +inf to the front.
    const bool usable = x[0] < kInf<T> && x[d - 1] == x[d - 1] && gamma > 0 && gamma < kInf<double>;
    if (!usable || !(std::abs(known.sum) < kInf<double>)) {
      fill(y, d, kNaN<T>);
      continue;
    }
    int64_t n = d;  // those that are deleted come last
    for (; n > 0 && x[n - 1] == -kInf<T>; --n) y[order[n - 1]] = 0;
    // No pool spans neighbours that are further apart than any two weights: scores are measured from there.
    for (int64_t start = 0, stop; start < n; start = stop) {
      const double base = x[start];
      z[start] = 0;
      moved[start] = -static_cast<double>(weights[start]);
      for (stop = start + 1; stop < n; ++stop) {
        z[stop] = (x[stop] - base) / gamma;
        moved[stop] = z[stop] - weights[stop];
        if (!(z[stop - 1] - z[stop] <= known.high - known.low)) break;
      }
      const double slack = 2 * kEps<T> * (std::abs(z[stop - 1]) + std::abs(known.high) + std::abs(known.low));
      pools.pool(moved + start, stop - start, slack, ties + start);
      for (int64_t k = start; k < stop; ++k) {
        if (ties[k] != 0) {  // alone
          y[order[k]] = weights[k];
          continue;
        }
        const int64_t first = k;
        double sum = weights[k], scores = z[k];
        do {
          ++k;
          sum += weights[k];
          scores += z[k];
        } while (ties[k] == 0);
        const double size = static_cast<double>(k + 1 - first), mean = sum / size, score = scores / size;
        for (int64_t i = first; i <= k; ++i) y[order[i]] = static_cast<T>(mean + (z[i] - score));
      }
    }
    ties[d - 1] = 0;
  }
}

template <class T>
void group_mean(const GroupMean<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  for (int64_t row = begin; row < end; ++row) {
    const T *v = problem.v + row * d, *weight = problem.weight + row * d;
    const int32_t* order = problem.order + row * d;
    const int8_t* ties = problem.ties + row * d;
    T* mean = problem.mean + row * d;
    map(v, d, T{0}, mean, [&](int64_t i, Vec<T> value) {
      const Vec<T> count = load_within(weight, i, d, T{0});
      return count == Vec<T>{} ? Vec<T>{} : value * count;
    });
    for (int64_t k = 0; k < d; ++k) {
      if (ties[k] != 0 || k == d - 1) continue;  // alone
      const int64_t first = k;
      double total = mean[order[k]], size = weight[order[k]];
      do {
        ++k;
        total += mean[order[k]];
        size += weight[order[k]];
      } while (ties[k] == 0 && k != d - 1);
      const T value = static_cast<T>(size == 0 ? 0 : total / size);
      for (int64_t i = first; i <= k; ++i) mean[order[i]] = value * weight[order[i]];
    }
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
