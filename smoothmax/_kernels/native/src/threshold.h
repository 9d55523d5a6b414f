// Tsallis entropies and p-norms over the simplex: one threshold a row. See smoothmax/_solvers/_convex.py.
//
// A score more than 1 / scale below the top never gets weight, so one look at the row leaves few to search among. The
// search runs from the left and is Newton's method; powers are computed where no square root serves.
#pragma once

#include "kernels.h"
#include "power.h"
#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

constexpr int kMaxPasses = 64;  // three to six are the rule

// A residual this small, relative to 1, is nothing but the rounding of powers and of their sums.
template <class T>
double noise(int64_t n) {
  return 16 * kEps<T> + kEps<double> * static_cast<double>(n) / 64;
}

// Whether a step of Newton's method, after one of size `before`, leaves rounding: its error is of second order, so the
// next residual is about this one times (now / before)^2. Like all that follows with a V, of one row or of a row in
// each lane.
template <class T, class V>
SMOOTHMAX_INLINE auto leaves_rounding(V residual, V now, V before) {
  return magnitude(residual) * now * now <= 8.0 * kEps<T> * before * before;
}

// Whether a search for tau, whose last two steps these are, has arrived: the residual is relative to 1.
struct Steps {
  double last = 0, now = 0;

  // Newton's method leaves an error of second order, so the next residual is about this one times (now / last)^2, if
  // both are steps of that method.
  template <class T>
  bool leave_rounding(double residual, bool both) const {
    return leaves_rounding<T>(residual, now, both ? greater(magnitude(last), magnitude(now)) : now);
  }
  template <class T>
  bool stall(double residual, int64_t n) const {
    return std::abs(residual) < noise<T>(n) && 2 * std::abs(now) > std::abs(last);
  }
};

// Whether the last step took from the sum what it should: less where scores left the support in it.
template <class V>
SMOOTHMAX_INLINE auto stays_linear(V before, V after, V taken, double noise) {
  return magnitude(after - (before - taken)) <= noise * after;
}

// Newton's method for u^1 and u^2: what is left of the equation, relative to 1, and the step.
template <class V>
struct Newton {
  V residual, step;
};

SMOOTHMAX_INLINE double root(double v) { return std::sqrt(v); }
SMOOTHMAX_INLINE Vec<double> root(Vec<double> v) {
  for (int64_t lane = 0; lane < kWidth<double>; ++lane) v[lane] = std::sqrt(v[lane]);
  return v;
}

// From the sums of u^(R-1) and u^R, for an entropy; where R is 1, for a p-norm too.
template <int R, class V>
SMOOTHMAX_INLINE Newton<V> newton(V low, V mid) {
  if constexpr (R == 1) return {mid - 1, (mid - 1) / low};
  return {mid - 1, (mid - root(mid)) / low};
}

// From those of u, u^2 and u^3, for a p-norm.
inline Newton<double> newton(double low, double mid, double high) {
  const double residual = 1 - std::cbrt(high) / mid;
  return {residual, residual / (2 * low / mid - mid / high)};
}

// The greatest number that is not above t + step, both negative: rounded up, a threshold would lose the scores that it
// then equals.
template <class T, class V>
SMOOTHMAX_INLINE V rounded_down(V t, V step) {
  const V sum = rounded<T>(t + step);
  return (t - sum) + step < V{} ? rounded<T>(sum + 0.75 * kEps<T> * sum) : sum;  // the next number below
}

// The weights of scores after the last step: u^R.
template <int R, class T>
SMOOTHMAX_INLINE Vec<T> whole_power(Vec<T> s, Vec<T> t, Vec<T> rest) {
  const Vec<T> u = positive<T>((s - t) - rest);
  return R == 1 ? u : u * u;
}

// Finds the weights y = u^R / sum u^R for u = max(s - tau, 0), R = 1 (alpha or p = 2) or 2 (alpha or p = 1.5): writes
// u^R and returns their sum, NaN if it does not arrive.
template <int R, bool kOfNorm, class T>
double whole_power_weights(const Kept<T>& kept) {
  const double enough = 2 * std::sqrt(kEps<T>);
  T t = -1;
  double support = 0;
  Steps steps;
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    int64_t positives = 0;
    auto f = sums<T, kOfNorm ? 3 : 2>(kept.s, kept.n, [&](int64_t, Vec<T> s, Vec<T>* part) {
      Vec<T> u = positive<T>(s - t);
      if constexpr (R == 1) {
        positives += __builtin_popcount(bits<T>(u > Vec<T>{}));
        part[1] += u;
      } else {
        part[0] += u;
        part[1] += u * u;
        if constexpr (kOfNorm) part[2] += u * u * u;
      }
    });
    if constexpr (R == 1) f[0] = static_cast<double>(positives);
    const auto [residual, step] = kOfNorm && R == 2 ? newton(f[0], f[1], f.back()) : newton<R>(f[0], f[1]);
    steps = {steps.now, step};
    // For an entropy rounding alone lets Newton's method step back here. The equation of a p-norm is not convex.
    const bool stalled =
        kOfNorm ? steps.stall<T>(residual, kept.n) : pass > 0 && step <= 0 && residual > -noise<T>(kept.n);
    const double here = t;
    const T next = static_cast<T>(R == 1 ? rounded_down<T>(here, step) : here + step);
    const bool there = R == 1 ? step >= 0 && (f[0] == support || next == t)
                              : std::abs(R * step) <= enough * -t && steps.leave_rounding<T>(residual, pass > 0);
    support = f[0];
    if (!there && !stalled) {
      t = next;
      continue;
    }
    // The last step, by which t could not be moved, counts as often as there are weights. Where R is 1, it leaves no
    // error on an unchanged support, and a step back is rounding, which would bring in the scores next to t.
    const T rest = static_cast<T>(R == 1 ? std::max(step, 0.0) : step);
    const auto [total] = sums<T, 1>(kept.s, kept.n, [&](int64_t i, Vec<T> s, Vec<T>* part) {
      const Vec<T> y = whole_power<R, T>(s, all<T>(t), all<T>(rest));
      store<T>(kept.y + i, y);
      part[0] += y;
    });
    if (R == 1 || stalled || stays_linear<double>(f[1], total, R * rest * f[0], noise<T>(kept.n))) return total;
    t = next;
  }
  return kNaN<double>;
}

// Of u^(r-1), u^r, and u^(r+1) or, where `lacking`, u^r times what u lacks of the largest u.
struct Sums {
  double low, mid, high;
};

// A threshold, and what rounding it left over, which counts as often as there are weights next to it.
template <class T>
struct RoundedThreshold {
  T tau, rest;

  void move(double step, double low, double high) {
    const double target = static_cast<double>(tau) + rest + step, within = std::min(std::max(target, low), high);
    const T next = static_cast<T>(within);
    rest = static_cast<T>(target == within ? (static_cast<double>(tau) - next) + rest + step : within - next);
    tau = next;
  }
  // The u of the largest score, and its logarithm.
  double top() const { return -static_cast<double>(tau) - rest; }
  double log_top() const { return std::log1p(-((1 + static_cast<double>(tau)) + rest)); }
};

// What a score s adds to the sums at a threshold: u^(r-1), which is returned, u^r, and u^(r+1) or, where `lacking`, u^r
// times -s.
template <class T, class R>
SMOOTHMAX_INLINE Vec<T> power_terms(Vec<T> s, Vec<T> tau, Vec<T> rest, R r, Mask<T> lacking, Vec<T>* part) {
  const Vec<T> u = (s - tau) - rest;
  // For small b, u is close to 1 and r multiplies the error of rounding it; the power gets that error back.
  const Vec<T> error = (s - (u + tau)) - rest;
  const Vec<T> p = power<T>(u, r - 1, error / greater(u, T(-0.5) * tau));
  part[0] += p;
  part[1] += p * u;
  part[2] += p * u * (lacking ? -s : u);
  return p;
}

// The weight of a score after the last step, to first order, from the power r - 1 that the last pass computed.
template <class T>
SMOOTHMAX_INLINE Vec<T> last_step(Vec<T> s, Vec<T> tau, Vec<T> rest, Vec<T> low, Vec<T> last) {
  return low * positive<T>(positive<T>((s - tau) - rest) - last);
}

// (1 - exp(-c x)) / c, continuous at c = 0.
inline double phi(double x, double c) { return c == 0 ? x : -std::expm1(-c * x) / c; }

// What a step is made of: log F, its slope, and 1 / k as the sums tell it and for Newton's method on a norm.
struct Equation {
  double log_f, slope, inverse_k, inverse_norm;
};

inline double inverse_exponent(double b, const Sums& f) { return (1 + b) * f.mid / f.low * (f.mid / f.high) - 1; }

struct TsallisEquation {
  static constexpr bool kInProportion = false;  // whether weights need not sum to 1, but for rounding
  static double scale(double b) { return b; }   // of the scores, over gamma
  static double equal(double b, double d) { return -std::pow(d, -b); }
  static bool lacking(double) { return false; }
  template <class T>
  static Equation at(double b, const Sums& f, RoundedThreshold<T>) {
    return {std::log(f.mid), f.low / (b * f.mid), inverse_exponent(b, f), b};
  }
};

struct PNormEquation {
  static constexpr bool kInProportion = true;
  static double scale(double) { return 1; }
  static double equal(double b, double d) { return -std::pow(d, -2 * b / (1 + b)); }
  // For small b all of the equation is of the order of b, and summed up so that it stays.
  static bool lacking(double b) { return b < 1.0 / 32; }
  template <class T>
  static Equation at(double b, Sums f, RoundedThreshold<T> at) {
    const double r = 1 / b, lack = f.high / (at.top() * f.mid);
    if (lacking(b)) f.high = at.top() * f.mid * (1 - lack);
    const double log_f =
        lacking(b) ? at.log_top() - std::log1p(-lack) + 2 * b / (1 + b) * (std::log(f.high) - (1 + r) * at.log_top())
                   : std::log(f.mid) + (1 - r) / (1 + r) * std::log(f.high);
    const double spread = f.low / f.mid * (f.high / f.mid) - 1, k = inverse_exponent(b, f);
    const double slope = f.mid / f.high * (1 + r * (spread > 64 * kEps<T> ? spread : 0));
    return {log_f, slope, k * (1 + r) / (2 + k * (1 - r)), 1};
  }
};

// The search for y = u^r / sum u^r, r = 1 / b >= 1, any power, in a row of n scores.
template <class Of, class T>
class PowerSearch {
 public:
  PowerSearch() = default;
  PowerSearch(double b, int64_t n)
      : n_(n),
        b_(b),
        equal_(Of::equal(b, static_cast<double>(n))),
        enough_(4 * std::pow(static_cast<double>(kEps<T>), std::max(b, 0.5))) {}

  T tau() const { return at_.tau; }
  T rest() const { return at_.rest; }
  T r() const { return static_cast<T>(1 / b_); }
  bool lacking() const { return Of::lacking(b_); }

  // To the next threshold; false if there were too many.
  bool move() {
    at_.move(steps_.now, -1, equal_);
    return passes_++ < kMaxPasses;
  }

  // Looks at the sums there: whether the threshold is the last one.
  bool arrives(const Sums& f) {
    constexpr double kFar = 0.2;  // log F down to which the exponent k is estimated from the sums
    const Equation e = Of::at(b_, f, at_);
    const bool was_far = far_;
    far_ = far_ && e.log_f > kFar;
    steps_ = {steps_.now, phi(e.log_f, far_ ? e.inverse_k : e.inverse_norm) / e.slope};
    sums_ = f;
    // Dividing by the sum repairs what is left over, but for this share; and to first order what b magnifies.
    const double share = e.inverse_norm * std::max(1.0, std::sqrt(static_cast<double>(kEps<T>)) * e.inverse_norm / b_);
    stalls_ = steps_.template stall<T>(std::max(share, 1.0) * e.log_f, n_);
    return stalls_ || (std::abs(steps_.now) <= b_ * enough_ * -at_.tau &&
                       steps_.template leave_rounding<T>(share * e.log_f, !was_far));
  }

  // The last step, by which the threshold is not moved but the weights are, to first order.
  T last() const { return static_cast<T>(steps_.now / b_); }
  // Whether these weights, which sum to `total`, are the answer: not if scores left the support in the last step.
  bool ends(double total) const {
    return stalls_ || stays_linear<double>(sums_.mid, total, last() * sums_.low, noise<T>(n_));
  }

 private:
  int64_t n_, passes_ = 0;
  double b_, equal_, enough_;
  RoundedThreshold<T> at_ = {-1, 0};
  Steps steps_;
  bool far_ = true, stalls_ = false;
  Sums sums_;
};

// Writes the weights and returns their sum, NaN if it does not arrive.
template <class Of, class T>
double any_power_weights(const Kept<T>& kept, double b) {
  PowerSearch<Of, T> search(b, kept.n);
  const Mask<T> lacking = search.lacking() ? ~Mask<T>{} : Mask<T>{};
  while (search.move()) {
    const Vec<T> tau = all<T>(search.tau()), rest = all<T>(search.rest());
    // The powers r - 1 are kept in place of the weights.
    const auto [low, mid, high] = sums<T, 3>(kept.s, kept.n, [&](int64_t i, Vec<T> s, Vec<T>* part) {
      store<T>(kept.y + i, power_terms<T>(s, tau, rest, search.r(), lacking, part));
    });
    if (!search.arrives({low, mid, high})) continue;
    const auto [total] = sums<T, 1>(kept.s, kept.n, [&](int64_t i, Vec<T> s, Vec<T>* part) {
      const Vec<T> y = last_step<T>(s, tau, rest, load(kept.y + i), all<T>(search.last()));
      store<T>(kept.y + i, y);
      part[0] += y;
    });
    if (search.ends(total)) return total;
  }
  return kNaN<double>;
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
