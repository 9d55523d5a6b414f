// Narrow rows over the simplex, alpha = 2 or 1.5: as many side by side as a vector has lanes.
//
// A row of a hundred scores fills a few vectors, and what is done in them waits for their sums. Here a lane is a row,
// so that nothing is summed across lanes: the search is `whole_power_weights` of threshold.h in all rows at once. A row
// that has arrived stays as it is, so that none depends on its neighbours.
#pragma once

#include "threshold.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// The widest rows that are solved so: their scores stay in the nearest cache.
constexpr int64_t kNarrow = 256;

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

template <int R, class T>
class Narrow {
 public:
  explicit Narrow(const Threshold<T>& problem)
      : problem_(problem), d_(problem.d), noise_(noise<T>(d_)), z_(room(d_)), y_(room(d_)) {}

  // A row to be solved, with the next ones or when there are no more.
  void add(int64_t row) {
    row_[n_++] = row;
    if (n_ == kWidth<T>) solve();
  }
  void finish() {
    if (n_ > 0) solve();
  }

 private:
  static constexpr int64_t kParts = Wide<T>::kParts;

  // What is known of the rows of one vector of double.
  struct Rows {
    Vec<double> t, next, low, mid, now, support, passes;
    Mask<double> moving, stalled;
  };

  static int64_t room(int64_t d) { return d <= kNarrow ? (d + kWidth<T> - 1) / kWidth<T> * kWidth<T> * kWidth<T> : 0; }
  Vec<T> z(int64_t i) const { return load(z_ + i * kWidth<T>); }

  template <class Of>
  Vec<T> gathered(Of&& of) const {
    Wide<T> wide;
    for (int64_t k = 0; k < kParts; ++k) wide.part[k] = of(rows_[k]);
    return narrowed<T>(wide);
  }

  // N sums over the positions: add(i, part) adds what is at i.
  template <int64_t N, class Add>
  SMOOTHMAX_INLINE std::array<Wide<T>, N> sums_of_rows(Add&& add) const {
    std::array<Wide<T>, N> result = {};
    for (int64_t start = 0; start < d_; start += kBlock) {
      Vec<T> part[N] = {};
      for (int64_t i = start, end = std::min(start + kBlock, d_); i < end; ++i) add(i, part);
      for (int64_t m = 0; m < N; ++m) {
        const Wide<T> wide = widened<T>(part[m]);
        for (int64_t k = 0; k < kParts; ++k) result[m].part[k] += wide.part[k];
      }
    }
    return result;
  }

  void solve() {
    for (int64_t lane = n_; lane < kWidth<T>; ++lane) row_[lane] = row_[0];
    take();
    do {
      while (search()) {
      }
    } while (weigh());
    give();
    n_ = 0;
  }

  // The scores less the largest of their row, and scaled, position by position.
  void take() {
    Vec<T> top = all<T>(-kInf<T>), scale;
    Mask<T> usable = ~Mask<T>{};
    for (int64_t i = 0; i < d_; i += kWidth<T>) {
      Vec<T> square[kWidth<T>];
      for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
        square[lane] = load_within(problem_.x + row_[lane] * d_, i, d_, -kInf<T>);
      }
      transpose<T>(square);
      for (int64_t k = 0; k < kWidth<T>; ++k) {
        store(z_ + (i + k) * kWidth<T>, square[k]);
        top = greater(square[k], top);
        usable &= square[k] < all<T>(kInf<T>);
      }
    }
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      const T gamma = problem_.gamma[row_[lane]];
      scale[lane] = gamma > 0 && gamma < kInf<T> ? T(1) / R / gamma : kNaN<T>;
    }
    for (int64_t i = 0; i < d_; ++i) store(z_ + i * kWidth<T>, (z(i) - top) * scale);
    broken_ = ~usable | (scale != scale);
    empty_ = top == all<T>(-kInf<T>);
    const Vec<T> one = all<T>(1);
    const Wide<T> solvable = widened<T>(broken_ | empty_ ? Vec<T>{} : one);
    for (int64_t k = 0; k < kParts; ++k) {
      rows_[k] = Rows{};
      rows_[k].t = all<double>(-1);
      rows_[k].moving = solvable.part[k] != Vec<double>{};
    }
  }

  // A pass of Newton's method in all rows that move; whether some still do.
  bool search() {
    const double enough = 2 * std::sqrt(kEps<T>);
    const Vec<T> t = gathered([](const Rows& rows) { return rows.t; });
    const auto f = sums_of_rows<2>([&](int64_t i, Vec<T>* part) {
      const Vec<T> u = positive<T>(z(i) - t);
      part[0] += R == 1 ? (u > Vec<T>{} ? all<T>(1) : Vec<T>{}) : u;
      part[1] += R == 1 ? u : u * u;
    });
    Mask<double> left = {};
    for (int64_t k = 0; k < kParts; ++k) {
      Rows& rows = rows_[k];
      const Vec<double> low = f[0].part[k], mid = f[1].part[k], residual = mid - 1, here = rows.t;
      Vec<double> step, next;
      Mask<double> there;
      const Mask<double> moving = rows.moving, later = rows.passes > Vec<double>{};
      if constexpr (R == 1) {
        step = residual / low;
        next = rounded<T>(here + step);
        next = (here - next) + step < Vec<double>{} ? rounded<T>(next + 0.75 * kEps<T> * next) : next;
        there = (step >= Vec<double>{}) & ((low == rows.support) | (next == here));
      } else {
        Vec<double> root = mid;
        for (int64_t lane = 0; lane < kWidth<double>; ++lane) root[lane] = std::sqrt(root[lane]);
        step = (mid - root) / low;
        next = rounded<T>(here + step);
        const Vec<double> before = later ? greater(magnitude(rows.now), magnitude(step)) : step;
        there = (magnitude(R * step) <= -enough * here) &
                (magnitude(residual) * step * step <= 8.0 * kEps<T> * before * before);
      }
      const Mask<double> stalled = later & (step <= Vec<double>{}) & (residual > all<double>(-noise_));
      rows.moving = moving & ~(there | stalled) & (rows.passes + 1 < all<double>(kMaxPasses));
      const Mask<double> lost = moving & ~(there | stalled | rows.moving);
      rows.t = lost ? all<double>(kNaN<double>) : rows.moving ? next : here;
      // What a row found when it arrived stays.
      rows.next = moving ? next : rows.next;
      rows.low = moving ? low : rows.low;
      rows.mid = moving ? mid : rows.mid;
      rows.now = moving ? step : rows.now;
      rows.support = moving ? low : rows.support;
      rows.stalled = moving ? stalled : rows.stalled;
      rows.passes = moving ? rows.passes + 1 : rows.passes;
      left |= rows.moving;
    }
    return any<double>(left);
  }

  // The weights after the last step, by which t could not be moved; whether scores left the support of some row in it,
  // which then goes on.
  bool weigh() {
    const Vec<T> t = gathered([](const Rows& rows) { return rows.t; });
    const Vec<T> rest = gathered([](const Rows& rows) { return R == 1 ? positive<double>(rows.now) : rows.now; });
    const auto f = sums_of_rows<1>([&](int64_t i, Vec<T>* part) {
      const Vec<T> u = positive<T>((z(i) - t) - rest), y = R == 1 ? u : u * u;
      store(y_ + i * kWidth<T>, y);
      part[0] += y;
    });
    total_ = f[0];
    Mask<double> left = {};
    for (int64_t k = 0; k < kParts && R != 1; ++k) {
      Rows& rows = rows_[k];
      const Vec<double> total = total_.part[k], expected = rows.mid - R * rounded<T>(rows.now) * rows.low;
      const Mask<double> linear = magnitude(total - expected) <= noise_ * total, solved = rows.passes > Vec<double>{};
      rows.moving = solved & ~rows.stalled & ~linear & (rows.t == rows.t);
      rows.t = rows.moving ? rows.next : rows.t;
      left |= rows.moving;
    }
    return any<double>(left);
  }

  void give() {
    Wide<T> factor;
    for (int64_t k = 0; k < kParts; ++k) {
      const Vec<double> total = total_.part[k];
      factor.part[k] = magnitude(total - 1) < all<double>(kNearly) ? 1 / total : all<double>(kNaN<double>);
    }
    const Vec<T> by = narrowed<T>(factor), otherwise = broken_ ? all<T>(kNaN<T>) : Vec<T>{};
    const Mask<T> solved = ~(broken_ | empty_);
    for (int64_t i = 0; i < d_; i += kWidth<T>) {
      Vec<T> square[kWidth<T>];
      for (int64_t k = 0; k < kWidth<T>; ++k) {
        square[k] = i + k < d_ ? load(y_ + (i + k) * kWidth<T>) : Vec<T>{};
        square[k] = solved ? square[k] * by : otherwise;
      }
      transpose<T>(square);
      for (int64_t lane = 0; lane < n_; ++lane) store_within<T>(problem_.y + row_[lane] * d_, i, d_, square[lane]);
    }
  }

  const Threshold<T>& problem_;
  const int64_t d_;
  const double noise_;
  int64_t row_[kWidth<T>], n_ = 0;
  Array<T> z_, y_;  // scores and weights of all rows, position by position
  Rows rows_[kParts];
  Wide<T> total_;
  Mask<T> broken_, empty_;
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
