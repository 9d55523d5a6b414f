// Chains: the prox of total variation and of the isotonic order. The problem, and the sweeps that settle most rows
// (sweeps.h), are those of smoothmax/_solvers/_chain.py. A row that takes too many is solved alone, in double, by
// dynamic programming (Johnson 2013).
//
// Let D_i(t) be the derivative of the least cost of positions 0..i, given that t_i = t. It is increasing and piecewise
// linear,
//
//     D_i(t) = w_i (t - x_i) + clip(D_{i-1}(t), -down_{i-1}, up_{i-1}),
//
// and D_i reaches -down_i at lo_i and up_i at hi_i. At the end D = 0 gives the last t, and then
// t_i = clip(t_{i+1}, lo_i, hi_i). A clip puts a constant piece at either end, in place of pieces that are never seen
// again: O(d) in all.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "sweeps.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// A linear piece of D. With the number and the sum of the positions so far (those that are not deleted), and what these
// were when the piece was made, D(t) = force + (count - count0) t - (sum - sum0): to add a position changes no piece.
struct Piece {
  double count0, sum0, force;
  double start;  // it reaches from here to the start of the next
};

class Derivative {
 public:
  Derivative(Piece* pieces, int64_t d) : first_(pieces + d), last_(first_) { *first_ = {0, 0, 0, -HUGE_VAL}; }

  void add(double x) {
    count_ += 1;
    sum_ += x;
  }

  // Cuts D off below `least` (above `most`) and returns where; infinite where D never goes beyond.
  double clip_below(double least) {
    const Piece* before = first_;
    while (first_ != last_ && at(*first_, first_[1].start) < least) ++first_;
    const double slope = count_ - first_->count0;
    if (slope == 0 && first_ == before) return -HUGE_VAL;
    // A constant piece behind those that were dropped is beyond `least` by rounding alone, from where it starts.
    const double where = slope == 0 ? first_->start : (least - first_->force + (sum_ - first_->sum0)) / slope;
    first_->start = where;
    *--first_ = {count_, sum_, least, -HUGE_VAL};
    return where;
  }
  double clip_above(double most) {
    const Piece* before = last_;
    while (last_ != first_ && at(*last_, last_->start) > most) --last_;
    const double slope = count_ - last_->count0;
    if (slope == 0 && last_ == before) return HUGE_VAL;
    const double where = slope == 0 ? last_[1].start : (most - last_->force + (sum_ - last_->sum0)) / slope;
    *++last_ = {count_, sum_, most, where};
    return where;
  }

  // Where D is 0: the end of its first piece where that is 0, as behind a free fall; 0 where D is so everywhere.
  double root() {
    while (first_ != last_ && at(*first_, first_[1].start) < 0) ++first_;
    const double slope = count_ - first_->count0;
    if (slope == 0) return first_ == last_ ? 0 : first_[1].start;
    return (sum_ - first_->sum0 - first_->force) / slope;
  }

 private:
  double at(const Piece& piece, double t) const {
    return piece.force + (count_ - piece.count0) * t - (sum_ - piece.sum0);
  }

  double count_ = 0, sum_ = 0;
  Piece *first_, *last_;
};

// The last t of a row of finite and deleted (-inf) scores, and the limits of the others.
template <class T>
double forward(const T* x, double centre, const T* up, bool one_up, const T* down, bool one_down, int64_t d,
               Piece* pieces, double* lo, double* hi) {
  Derivative derivative(pieces, d);
  for (int64_t i = 0; i < d; ++i) {
    if (x[i] != -kInf<T>) derivative.add(static_cast<double>(x[i]) - centre);
    if (i == d - 1) break;
    const double u = up[one_up ? 0 : i], l = down[one_down ? 0 : i];
    lo[i] = l == HUGE_VAL ? -HUGE_VAL : derivative.clip_below(-l);
    hi[i] = u == HUGE_VAL ? HUGE_VAL : derivative.clip_above(u);
  }
  return derivative.root();
}

// The middle of a row, whose largest score is `most`, and how far its scores lie from it; NaN where there is none, or
// where numbers of this size overflow.
struct Spread {
  double centre, reach;
};

template <class T>
Spread spread(const T* x, int64_t d, T most) {
  Vec<T> lowest = all<T>(kInf<T>);
  auto [sum, n] = sums<T, 2>(x, d, -kInf<T>, [&](int64_t, Vec<T> v, Vec<T>* part) {
    const Mask<T> there = v != all<T>(-kInf<T>);
    lowest = smaller(there ? v : lowest, lowest);
    part[0] += there ? v - most : Vec<T>{};
    part[1] += there ? all<T>(1) : Vec<T>{};
  });
  if (n == 0) return {0, 0};
  if (!std::isfinite(sum)) {  // it overflows T, if not double
    sum = 0;
    for (int64_t i = 0; i < d; ++i) sum += x[i] == -kInf<T> ? 0 : static_cast<double>(x[i]) - most;
  }
  const double centre = most + sum / n, least = -largest<T>(-lowest);
  return {centre, std::max(most - centre, centre - least)};
}

template <class T>
void chain_row(const T* x, const T* up, bool one_up, const T* down, bool one_down, int64_t d, Spread at, Piece* pieces,
               double* lo, double* hi, T* t, int8_t* jumps) {
  // Values nearer than this are rounding apart: no segment is split for less.
  const double slack = 2 * kEps<T> * at.reach;
  double value = forward(x, at.centre, up, one_up, down, one_down, d, pieces, lo, hi);
  for (int64_t i = d - 1; i >= 0; --i) {
    jumps[i] = 0;
    if (i < d - 1) {
      // Without any force there is no segment, and no tie either.
      const bool free = up[one_up ? 0 : i] + down[one_down ? 0 : i] == 0;
      const double near = free ? 0 : slack;
      const bool rises = value > hi[i] + near, falls = value < lo[i] - near;
      jumps[i] = static_cast<int8_t>(rises ? 1 : falls || free ? -1 : 0);
      value = rises ? hi[i] : falls ? lo[i] : value;
    }
    t[i] = x[i] == -kInf<T> ? x[i] : static_cast<T>(value + at.centre);
  }
}

// The rows of a chain problem that are solved side by side: up to kWidth of them, from `first` on.
template <class T>
class Group {
 public:
  explicit Group(const Chain<T>& problem)
      : problem_(problem),
        d_(problem.d),
        sweeps_(d_),
        up_(problem.up.size * kWidth<T>),
        down_(problem.down.size * kWidth<T>),
        pieces_(2 * d_ + 2),
        lo_(d_),
        hi_(d_) {}

  void solve(int64_t first, int64_t n) {
    constexpr int kRounds = 40;  // ten are the rule; chains that are made to be slow take one for each position
    Vec<T> slack = {};
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) slack[lane] = take(first, lane, lane < n);
    const int64_t up_step = problem_.up.size > 1 ? kWidth<T> : 0, down_step = problem_.down.size > 1 ? kWidth<T> : 0;
    const Bits unsettled = sweeps_.solve([&](int64_t i) { return load(up_ + i * up_step); },
                                         [&](int64_t i) { return load(down_ + i * down_step); }, slack, kRounds);
    sweeps_.fill_in();
    for (int64_t lane = 0; lane < n; ++lane) {
      const int64_t row = first + lane;
      const T *x = problem_.x + row * d_, *value = sweeps_.row(lane);
      T* t = problem_.t + row * d_;
      int8_t* jumps = problem_.jumps + row * d_;
      if (broken_[lane]) {
        fill(t, d_, kNaN<T>);
        fill(jumps, d_, int8_t{0});
      } else if (alone_[lane] || (unsettled >> lane & 1)) {
        chain_row(x, problem_.up.row(row), problem_.up.size == 1, problem_.down.row(row), problem_.down.size == 1, d_,
                  spread_[lane], pieces_, lo_, hi_, t, jumps);
      } else {
        const double centre = spread_[lane].centre;
        for (int64_t i = 0; i < d_; ++i) {
          t[i] = x[i] == -kInf<T> ? x[i] : static_cast<T>(value[i * kWidth<T>] + centre);
        }
        for (int64_t i = 0; i < d_; ++i) jumps[i] = sweeps_.jump(i, lane);
      }
    }
  }

 private:
  // Puts a row into its lane, or a deleted one where it is broken or there is none; returns its slack: values nearer
  // than that are rounding apart, and no segment is split for less.
  T take(int64_t first, int64_t lane, bool exists) {
    const int64_t row = first + lane;
    const T* x = problem_.x + row * d_;
    const Seen<T> seen = exists ? look(x, d_) : Seen<T>{-kInf<T>, true};
    spread_[lane] = exists ? spread(x, d_, seen.top) : Spread{};
    broken_[lane] = seen.broken || !(spread_[lane].reach * static_cast<double>(d_) < HUGE_VAL);
    broken_[lane] |= take_strength(exists ? problem_.up.row(row) : nullptr, problem_.up.size, up_ + lane);
    broken_[lane] |= take_strength(exists ? problem_.down.row(row) : nullptr, problem_.down.size, down_ + lane);
    alone_[lane] = !(spread_[lane].reach * static_cast<double>(d_) < std::numeric_limits<T>::max());
    T* z = sweeps_.row(lane);
    for (int64_t i = 0; i < d_; ++i) {
      const bool there = !broken_[lane] && !alone_[lane] && x[i] != -kInf<T>;
      z[i * kWidth<T>] = there ? static_cast<T>(x[i] - spread_[lane].centre) : kInf<T>;
    }
    return broken_[lane] || alone_[lane] ? 0 : static_cast<T>(2 * kEps<T> * spread_[lane].reach);
  }

  static bool take_strength(const T* from, int64_t n, T* to) {
    bool broken = false;
    for (int64_t i = 0; i < n; ++i) {
      const bool good = from != nullptr && from[i] >= 0;
      to[i * kWidth<T>] = good ? from[i] : 0;
      broken |= !good;
    }
    return broken;
  }

  const Chain<T>& problem_;
  const int64_t d_;
  Sweeps<T> sweeps_;
  Array<T> up_, down_;
  Spread spread_[kWidth<T>];
  bool broken_[kWidth<T>];
  bool alone_[kWidth<T>];  // sums of its scores overflow T, but not double
  Array<Piece> pieces_;
  Array<double> lo_, hi_;
};

template <class T>
void chain(const Chain<T>& problem, int64_t begin, int64_t end) {
  Group<T> group(problem);
  for (int64_t row = begin; row < end; row += kWidth<T>) group.solve(row, std::min(kWidth<T>, end - row));
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
