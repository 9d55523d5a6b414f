// Means over segments, rows side by side: a sum that starts anew behind each end, and its mean carried back to where
// the segment begins.
#pragma once

#include "columns.h"
#include "kernels.h"
#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// Bytes from i on as lanes of T, 0 beyond n.
template <class T>
SMOOTHMAX_INLINE Mask<T> bytes_within(const int8_t* from, int64_t i, int64_t n) {
  typename Lanes<T>::Bytes bytes = {};
  if (i + kWidth<T> <= n) {
    std::memcpy(&bytes, from + i, sizeof bytes);
  } else {
    for (int64_t k = 0; i + k < n; ++k) bytes[k] = from[i + k];
  }
  return __builtin_convertvector(bytes, Mask<T>);
}

// The sum of v over each segment divided by the sum of weight there; 0 where that is 0.
template <class T>
class SegmentMeans {
 public:
  explicit SegmentMeans(const SegmentMean<T>& problem)
      : problem_(problem), d_(problem.d), means_(d_ * kWidth<T>), ends_(d_) {}

  // Of n rows from `first` on, up to kWidth.
  void solve(int64_t first, int64_t n) {
    total_ = size_ = {};
    for (int64_t start = 0; start < d_; start += kWidth<T>) {
      Vec<T> v[kWidth<T>], weight[kWidth<T>], jumps[kWidth<T>];
      for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
        const int64_t row = (first + (lane < n ? lane : 0)) * d_;
        v[lane] = load_within(problem_.v + row, start, d_, T{0});
        weight[lane] = load_within(problem_.weight + row, start, d_, T{0});
        jumps[lane] = (Vec<T>)bytes_within<T>(problem_.jumps + row, start, d_);
      }
      transpose<T>(v);
      transpose<T>(weight);
      transpose<T>(jumps);
      for (int64_t k = 0, last = std::min(kWidth<T>, d_ - start); k < last; ++k) {
        const Mask<T> jump = (Mask<T>)jumps[k] != Mask<T>{};
        add(start + k, v[k], weight[k], start + k == d_ - 1 ? ~Mask<T>{} : jump);
      }
    }
    Vec<T> mean = {};
    for (int64_t i = d_ - 1; i >= 0; --i) {
      if (ends_[i] != 0) mean = lanes<T>(ends_[i]) ? load(means_ + i * kWidth<T>) : mean;
      store(means_ + i * kWidth<T>, mean);
    }
    columns_to_rows<T>(
        n, d_, [&](int64_t i) { return load(means_ + i * kWidth<T>); },
        [&](int64_t lane, int64_t i, Vec<T> m) { store_within<T>(problem_.mean + (first + lane) * d_, i, d_, m); });
  }

 private:
  SMOOTHMAX_INLINE void add(int64_t i, Vec<T> v, Vec<T> weight, Mask<T> end) {
    ends_[i] = static_cast<Bits>(bits<T>(end));
    const Wide<T> value = widened<T>(v), count = widened<T>(weight);
    const auto ends = widened_mask<T>(end);
    Wide<T> mean;
    for (int64_t k = 0; k < Wide<T>::kParts; ++k) {
      Vec<double>&total = total_.part[k], &size = size_.part[k];
      total += value.part[k];
      size += count.part[k];
      if (ends_[i] == 0) continue;
      mean.part[k] = size == Vec<double>{} ? Vec<double>{} : total / size;
      total = ends[k] ? Vec<double>{} : total;
      size = ends[k] ? Vec<double>{} : size;
    }
    if (ends_[i] != 0) store(means_ + i * kWidth<T>, narrowed<T>(mean));
  }

  const SegmentMean<T>& problem_;
  const int64_t d_;
  Array<T> means_;  // of the segments that end at a position
  Array<Bits> ends_;
  Wide<T> total_, size_;  // of the segments that have begun
};

template <class T>
void segment_mean(const SegmentMean<T>& problem, int64_t begin, int64_t end) {
  SegmentMeans<T> means(problem);
  for (int64_t row = begin; row < end; row += kWidth<T>) means.solve(row, std::min(kWidth<T>, end - row));
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
