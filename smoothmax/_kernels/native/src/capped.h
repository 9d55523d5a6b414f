// Entropies over the capped simplex: y_i = clip(psi(z_i - tau), 0, upper_i), sum y = total. See
// smoothmax/_solvers/_capped.py.
//
// The sum falls as tau rises, and what is asked of it is only that: a bracket, Newton's method inside it, and a half of
// it where Newton's method leaves it or is slow. The threshold may sit far below the top, where differences of scores
// are coarse: found roughly, it becomes the centre of the scores, and is found again.
#pragma once

#include "power.h"
#include "rows.h"
#include "simplex.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// psi and its derivative, as functions of w = z - tau. Powers that reach 0 fast count tau from there, so that the many
// small weights next to it are resolved; the others from where psi is 1 (sigmoid: 1/2), which lies `one` higher. They
// are steep if the slope has no bound, and bend if it is not 0 where psi reaches 0.
struct Shape {
  static constexpr bool kBends = false;
  bool steep() const { return false; }
  double one() const { return 0; }
};
template <class T>
struct Sigmoid : Shape {
  SMOOTHMAX_INLINE void operator()(Vec<T> w, Vec<T>& y, Vec<T>& slope) const {
    // exp(-|w|) cannot overflow.
    Vec<T> e = exp2<T>(smaller(w, -w) * T(kLog2E)), half = T{1} / (T{1} + e);
    y = w < Vec<T>{} ? e * half : half;
    slope = e * half * half;
  }
};
template <class T>
struct Exponential : Shape {
  SMOOTHMAX_INLINE void operator()(Vec<T> w, Vec<T>& y, Vec<T>& slope) const { y = slope = exp2<T>(w * T(kLog2E)); }
};
template <class T>
struct HighPower : Shape {  // b < 1/2
  T b, r;
  HighPower(T b) : b(b), r(1 / b) {}
  SMOOTHMAX_INLINE void operator()(Vec<T> w, Vec<T>& y, Vec<T>& slope) const {
    Vec<T> s = b * smaller(w, all<T>(T(1e30))), u = T{1} + s;
    Vec<T> safe = greater(u, all<T>(std::numeric_limits<T>::min()));
    slope = power<T>(u, r - 1, (s - (u - T{1})) / safe);
    y = slope * positive<T>(u);
  }
};
template <class T>
struct Linear : Shape {
  static constexpr bool kBends = true;
  double one() const { return 1; }
  SMOOTHMAX_INLINE void operator()(Vec<T> w, Vec<T>& y, Vec<T>& slope) const {
    y = positive<T>(w);
    slope = y > Vec<T>{} ? all<T>(1) : Vec<T>{};
  }
};
template <class T>
struct Square : Shape {
  double one() const { return 2; }
  SMOOTHMAX_INLINE void operator()(Vec<T> w, Vec<T>& y, Vec<T>& slope) const {
    slope = positive<T>(w * T(0.5));
    y = slope * slope;
  }
};
template <class T>
struct LowPower : Shape {  // b > 1/2
  T b, r;
  LowPower(T b) : b(b), r(1 / b) {}
  bool steep() const { return b > 1; }
  double one() const { return r; }
  SMOOTHMAX_INLINE void operator()(Vec<T> w, Vec<T>& y, Vec<T>& slope) const {
    Vec<T> u = positive<T>(b * smaller(w, all<T>(T(1e30))));
    slope = power<T>(u, r - 1);
    y = slope * u;
  }
};

// A row: scores about a centre, with bounds.
template <class T>
struct Scores {
  T* z;            // (x - centre) / gamma, a whole number of vectors, filled up with -inf
  const T* upper;  // one bound, or one a position
  bool one_bound;
  int64_t d;
  T most;  // above what any weight can be, so that none is infinite on the way

  SMOOTHMAX_INLINE Vec<T> bound(int64_t i) const {
    if (one_bound) return all<T>(std::min(upper[0], most));
    return smaller(load_within(upper, i, d, T{0}), all<T>(most));
  }
  void centre(const T* x, T centre, T gamma) {
    each(x, d, -kInf<T>, [&](int64_t i, Vec<T> v) { store<T>(z + i, (v - centre) / gamma); });
  }
};

// The weights at tau: their sum, and its derivative by -tau.
struct Filled {
  double sum, slope;
};

template <class T, class Psi>
Filled filled(const Scores<T>& scores, const Psi& psi, T tau) {
  const auto [sum, slope] = sums<T, 2>(scores.z, scores.d, -kInf<T>, [&](int64_t i, Vec<T> z, Vec<T>* part) {
    Vec<T> y, rate, bound = scores.bound(i);
    Mask<T> there = z > all<T>(-kInf<T>);
    psi(z - tau, y, rate);
    part[0] += there ? smaller(y, bound) : Vec<T>{};
    part[1] += (y < bound) & there ? rate : Vec<T>{};
  });
  return {sum, slope};
}

// Where the sum is `total`: between low and high, nearest to tau.
struct Root {
  double tau;
  Filled at;         // at tau
  double low, high;  // where the sum is at least and at most `total`; infinite where never seen
  bool arrived;
};

constexpr int kMaxSearch = 400;  // halvings from the largest to the least double, for hostile scores

// Searches from `tau`, by steps of `stride` and more while the root is on one side. A step below `enough` ends the
// search where a short step means a small excess, which it does but for powers with infinite slope at 0.
template <class T, class Psi>
Root find_root(const Scores<T>& scores, const Psi& psi, double total, double tau, double stride, double enough) {
  Root root = {tau, {}, -HUGE_VAL, HUGE_VAL, false};
  double last = HUGE_VAL;
  for (int pass = 0; pass < kMaxSearch; ++pass) {
    root.tau = static_cast<T>(tau);
    root.at = filled(scores, psi, static_cast<T>(tau));
    const double excess = root.at.sum - total, step = excess / root.at.slope;
    // Between neighbouring thresholds steep powers are mixed; the others may have many weights there.
    const double resolution = kEps<T> * std::max(std::abs(root.tau), psi.steep() ? 1.0 : 0.0);
    (excess >= 0 ? root.low : root.high) = root.tau;
    root.arrived =
        std::abs(excess) <= kEps<T> * total || std::abs(step) <= std::max(enough, psi.steep() ? 0 : resolution);
    if (root.arrived || root.high - root.low <= resolution) return root;
    // Newton's method, if it stays inside the bracket and halves its steps; else the middle, or a stride to find a
    // bracket.
    const bool bracketed = root.low > -HUGE_VAL && root.high < HUGE_VAL;
    tau = root.tau + step;
    if (!(tau > root.low && tau < root.high && std::abs(step) <= std::min(last / 2, bracketed ? HUGE_VAL : stride))) {
      tau = bracketed ? root.low + (root.high - root.low) / 2 : root.tau + std::copysign(stride, excess);
      stride *= 4;
    }
    last = std::abs(tau - root.tau);
  }
  return root;
}

// Writes the weights at the root. What their sum lacks is shared out among the free ones in proportion to their rates;
// where it jumps between two neighbouring thresholds (powers with infinite slope at 0), the weights lie between the
// two.
template <class T, class Psi>
void write_weights(const Scores<T>& scores, const Psi& psi, const Root& root, double total, T* y) {
  constexpr double kNearly = 1e-4;
  const double lack = total - root.at.sum;
  const bool between = !root.arrived && root.low > -HUGE_VAL && root.high < HUGE_VAL;
  const T low = static_cast<T>(root.low), high = static_cast<T>(root.high);
  if (between) {
    const double over = filled(scores, psi, low).sum, under = filled(scores, psi, high).sum;
    if (!(over >= total && total >= under)) return fill(y, scores.d, kNaN<T>);
    const T share = static_cast<T>(over > under ? (total - under) / (over - under) : 0);
    map(scores.z, scores.d, -kInf<T>, y, [&](int64_t i, Vec<T> z) {
      Vec<T> a, b, rate, u = scores.bound(i);
      psi(z - low, a, rate);
      psi(z - high, b, rate);
      a = smaller(a, u);
      b = smaller(b, u);
      return z == all<T>(-kInf<T>) ? Vec<T>{} : b + share * (a - b);
    });
    return;
  }
  const T share = static_cast<T>(root.at.slope > 0 ? lack / root.at.slope : 0), tau = static_cast<T>(root.tau);
  const T least = static_cast<T>(2 * kEps<T> * total / std::max(root.at.slope, 1.0));
  const auto [written] = sums<T, 1>(scores.z, scores.d, -kInf<T>, [&](int64_t i, Vec<T> z, Vec<T>* part) {
    Vec<T> w, rate, u = scores.bound(i);
    psi(z - tau, w, rate);
    if constexpr (Psi::kBends) {  // at a kink, rounding is no weight: a vertex has none that are free
      w = w < all<T>(least) ? Vec<T>{} : w;
      w = u - w < 2 * kEps<T> * u ? u : w;
    }
    Vec<T> free = positive<T>(smaller(w + share * rate, u));
    w = ((w > Vec<T>{}) & (w < u)) ? free : smaller(w, u);
    w = z == all<T>(-kInf<T>) ? Vec<T>{} : w;
    store_within<T>(y, i, scores.d, w);
    part[0] += w;
  });
  if (!(std::abs(written - total) <= kNearly * total)) fill(y, scores.d, kNaN<T>);
}

// The score next to the threshold, which must be that of a position with a bound above 0.
template <class T>
T nearest(const Scores<T>& scores, const T* x, double tau) {
  int64_t best = 0;
  double least = HUGE_VAL;
  for (int64_t i = 0; i < scores.d; ++i) {
    const double distance = std::abs(scores.z[i] - tau);
    const bool usable = scores.upper[scores.one_bound ? 0 : i] > 0;
    if (usable && distance < least) best = i, least = distance;
  }
  return x[best];
}

template <class T, class Psi>
void capped_row(Scores<T>& scores, const T* x, T top, T gamma, double total, double start, T* y, const Psi& psi) {
  constexpr double kRough = 1e-2;  // near enough for a centre
  scores.centre(x, top, gamma);
  start -= psi.one();
  Root root = find_root(scores, psi, total, start, std::max(1.0, std::abs(start) / 8), kRough);
  // So far from the top that its rounding is no centre, or that it is no number: a score is one.
  const T centre = static_cast<T>(top + gamma * root.tau);
  const bool far = kEps<T> * std::abs(root.tau) > kRough || !std::isfinite(centre);
  scores.centre(x, far ? nearest(scores, x, root.tau) : centre, gamma);
  root = find_root(scores, psi, total, 0, far ? 1 : kRough, 0);
  write_weights(scores, psi, root, total, y);
}

// What is known of a row of the capped simplex beforehand.
template <class T>
struct Budget {
  double room;   // the sum of the bounds
  double start;  // a first guess of where psi is 1, about the top, in units of gamma
  bool broken;   // a bound is NaN or negative
};

template <class T>
Budget<T> budget(const Scores<T>& scores, const T* x, T top, T gamma, double total) {
  constexpr double kFarthest = 1e150;  // squares of scores stay finite
  double room = 0, n = 0, mean = 0, square = 0;
  bool broken = false;
  for (int64_t i = 0; i < scores.d; ++i) {
    const double u = scores.one_bound ? scores.upper[0] : scores.upper[i],
                 v = std::max((static_cast<double>(x[i]) - top) / gamma, -kFarthest);
    broken |= !(u >= 0);
    if (x[i] == -kInf<T>) continue;
    room += u;
    n += 1;
    mean += v;
    square += v * v;
  }
  mean /= n;
  // As if the scores were normal: the quantile that leaves as many above as bounds of average size hold.
  constexpr double kLogisticToNormal = 1.702;
  const double share = std::min(std::max(total / room, 0.5 / n), 1 - 0.5 / n);
  const double spread = std::sqrt(std::max(square / n - mean * mean, 0.0));
  const double guess = mean - spread * std::log(share / (1 - share)) / kLogisticToNormal;
  return {room, std::min(guess, 0.0), broken};
}

template <class T>
void capped(const Capped<T>& problem, int64_t begin, int64_t end) {
  constexpr double kRounding = 8 * kEps<T>;
  const int64_t d = problem.d;
  Array<T> z(d);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = problem.x + row * d;
    T* y = problem.y + row * d;
    const T gamma = problem.gamma[row], alpha = problem.alpha[row], b = alpha - 1;
    const double total = problem.total[row];
    Scores<T> scores = {z, problem.upper.row(row), problem.upper.size == 1, d, static_cast<T>(2 * total)};
    const Seen<T> seen = look(x, d);
    const bool good =
        gamma > 0 && gamma < kInf<T> && total >= 0 && total < HUGE_VAL && (alpha == 0 || (b >= 0 && b < kInf<T>));
    if (nothing_to_solve(seen, good, y, d)) continue;
    const Budget<T> budget = SMOOTHMAX_TARGET::budget(scores, x, seen.top, gamma, total);
    if (budget.broken || total > budget.room * (1 + kRounding)) {
      fill(y, d, kNaN<T>);
    } else if (total == 0 || total >= budget.room) {
      for (int64_t i = 0; i < d; ++i) {
        y[i] = total == 0 || x[i] == -kInf<T> ? T{0} : scores.upper[scores.one_bound ? 0 : i];
      }
    } else {
      const auto solve = [&](const auto& psi) { capped_row(scores, x, seen.top, gamma, total, budget.start, y, psi); };
      if (alpha == 0) {
        solve(Sigmoid<T>{});
      } else if (b < kAlmostOne<T>) {
        solve(Exponential<T>{});
      } else if (b == 1) {
        solve(Linear<T>{});
      } else if (b == T(0.5)) {
        solve(Square<T>{});
      } else if (b < T(0.5)) {
        solve(HighPower<T>(b));
      } else {
        solve(LowPower<T>(b));
      }
    }
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
