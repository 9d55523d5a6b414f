// Sorting, the projection onto the permutahedron, and means over groups in sorted order. See
// smoothmax/_solvers/_permutahedron.py and _sorting.py.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "sort.h"

namespace smoothmax::SMOOTHMAX_TARGET {

template <class T>
void sort_rows(const Sort<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Sorter<T> sorted(d);
  Array<int32_t> order(d);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = problem.x + row * d;
    sorted(x, d, order);
    for (int64_t k = 0; k < d; ++k) {
      problem.values[row * d + k] = x[order[k]];
      problem.rank[row * d + order[k]] = static_cast<int32_t>(k);
    }
  }
}

// Ranks [start, start + size) that share their weights.
struct Shared {
  int64_t size;
  double scores, weights;  // sums
  double mean;             // of score less weight

  void add(const Shared& other) {
    size += other.size;
    scores += other.scores;
    weights += other.weights;
    mean = (scores - weights) / static_cast<double>(size);
  }
};

template <class T>
void permutahedron(const Permutahedron<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Sorter<T> sorted(d);
  Array<double> z(d);
  Array<Shared> pools(d);
  for (int64_t row = begin; row < end; ++row) {
    const T *x = problem.x + row * d, *weights = problem.weights.row(row);
    const double gamma = problem.gamma[row];
    T* y = problem.y + row * d;
    int32_t* order = problem.order + row * d;
    int8_t* ties = problem.ties + row * d;
    sorted(x, d, order);
    fill(ties, d, int8_t{0});
    int64_t n = 0;  // those that are not deleted come first
    while (n < d && x[order[n]] != -kInf<T>) ++n;
    double high = -kInf<double>, low = kInf<double>, sum = 0;
    for (int64_t k = 0; k < d; ++k) {
      high = std::max<double>(high, weights[k]);
      low = std::min<double>(low, weights[k]);
      sum += weights[k];
    }
    if (look(x, d).broken || !(gamma > 0) || !(gamma < kInf<double>) || !(std::abs(sum) < kInf<double>)) {
      fill(y, d, kNaN<T>);
      continue;
    }
    // Pools are closed where neighbours are further apart than any two weights: scores are measured from there.
    const double spread = high - low;
    int64_t count = 0, closed = 0;
    double base = n > 0 ? x[order[0]] : 0;
    for (int64_t k = 0; k < n; ++k) {
      const double here = x[order[k]];
      if (k > 0 && !((static_cast<double>(x[order[k - 1]]) - here) / gamma <= spread)) {
        closed = count;
        base = here;
      }
      z[k] = (here - base) / gamma;
      Shared last = {1, z[k], static_cast<double>(weights[k]), z[k] - weights[k]};
      const double slack = 2 * kEps<T> * (std::abs(z[k]) + std::abs(high) + std::abs(low));
      while (count > closed && pools[count - 1].mean <= last.mean + slack) last.add(pools[--count]);
      pools[count++] = last;
    }
    fill(y, d, T{0});
    for (int64_t k = 0, j = 0; j < count; ++j) {
      const Shared& pool = pools[j];
      const double size = static_cast<double>(pool.size), weight = pool.weights / size, mean = pool.scores / size;
      for (const int64_t stop = k + pool.size; k < stop; ++k) y[order[k]] = static_cast<T>(weight + (z[k] - mean));
      if (k < d) ties[k - 1] = -1;
    }
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
    double total = 0, size = 0;
    for (int64_t k = 0, start = 0; k < d; ++k) {
      const T count = weight[order[k]];
      total += count == 0 ? 0 : v[order[k]] * count;
      size += count;
      if (ties[k] == 0 && k != d - 1) continue;
      const T value = static_cast<T>(size == 0 ? 0 : total / size);
      for (; start <= k; ++start) mean[order[start]] = value * weight[order[start]];
      total = size = 0;
    }
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
