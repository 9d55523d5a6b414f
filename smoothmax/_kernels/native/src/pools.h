// Non-increasing regression: neighbours that are out of order are pooled, and share their mean.
#pragma once

#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

class Pools {
 public:
  explicit Pools(int64_t d) : sums_(d), firsts_(d) {}

  // Pools values[0..n) that are out of order, or in order by no more than `slack`: ends[i] becomes -1 where a pool ends
  // and 0 elsewhere.
  template <class T>
  void pool(const T* values, int64_t n, double slack, int8_t* ends) {
    int64_t first = 0;
    double sum = values[0], size = 1;
    // Means are compared multiplied by both sizes: a division would take longer.
    for (int64_t i = 1; i < n; ++i) {
      const double value = values[i];
      const bool apart = sum > (value + slack) * size;
      ends[i - 1] = apart ? -1 : 0;
      if (apart) {
        sums_[i - 1] = sum;
        firsts_[i - 1] = static_cast<int32_t>(first);
        first = i;
        sum = value;
        size = 1;
        continue;
      }
      sum += value;
      size += 1;
      while (first > 0) {
        const double other = sums_[first - 1], others = static_cast<double>(first - firsts_[first - 1]);
        if (other * size > (sum + slack * size) * others) break;
        ends[first - 1] = 0;
        sum += other;
        size += others;
        first = firsts_[first - 1];
      }
    }
    ends[n - 1] = -1;
  }

 private:
  Array<double> sums_;  // of the pool that ends at a position, and where it begins
  Array<int32_t> firsts_;
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
