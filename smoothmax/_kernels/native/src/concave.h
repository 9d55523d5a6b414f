// Tsallis entropies with alpha > 2, whose powers have infinite slope at 0. See smoothmax/_solvers/_concave.py.
//
// A threshold next to a score cannot be stored precisely enough to say what that score weighs. What can be: the lowest
// score c of the support and the weight w there. The others weigh (s - c + w^b)^r; where w^b underflows it is nothing
// to s - c.
#pragma once

#include "threshold.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// The sum of the powers r of the scores above c, each e higher, and the sum of the powers r - 1, which is kept.
template <class T>
Sums sums_above(const Kept<T>& kept, T c, T e, T r) {
  const auto [low, mid] = sums<T, 2>(kept.s, kept.n, [&](int64_t i, Vec<T> s, Vec<T>* part) {
    Vec<T> u = s - c + e;
    Vec<T> p = s > all<T>(c) ? power<T>(u, r - 1) : Vec<T>{};
    store<T>(kept.y + i, p * u);
    part[0] += p;
    part[1] += p * u;
  });
  return {low, mid, 0};
}

// The lowest score that gets weight: the powers above it sum to less than 1. Every question is asked at a score.
template <class T>
T lowest_of_support(const Kept<T>& kept, T r) {
  T in = 0, out = -2;  // the top is in
  while (true) {
    // The nearest candidates to the middle of those that are left, from above.
    Vec<T> least = all<T>(in), most = all<T>(out);
    for (int64_t i = 0; i < kept.n; i += kWidth<T>) {
      Vec<T> s = load(kept.s + i);
      Mask<T> open = (s > all<T>(out)) & (s < all<T>(in));
      least = smaller(open ? s : all<T>(in), least);
      most = greater(open ? s : all<T>(out), most);
    }
    const T low = -largest<T>(-least), high = largest<T>(most);
    if (high <= out) return in;
    const T middle = low + (high - low) / 2;
    Vec<T> nearest = all<T>(high);
    for (int64_t i = 0; i < kept.n; i += kWidth<T>) {
      Vec<T> s = load(kept.s + i);
      nearest = smaller(s >= all<T>(middle) ? s : all<T>(high), nearest);
    }
    const T c = -largest<T>(-nearest);
    (sums_above(kept, c, T{0}, r).mid < 1 ? in : out) = c;
  }
}

// Writes the weights and returns their sum, NaN if it does not arrive.
template <class T>
double concave_weights(const Kept<T>& kept, double b) {
  const T r = static_cast<T>(1 / b), c = lowest_of_support(kept, r);
  double ties = 0;
  for (int64_t i = 0; i < kept.n; ++i) ties += kept.s[i] == c;
  // Newton's method on a convex function of w, from the right.
  double w = (1 - sums_above(kept, c, T{0}, r).mid) / ties;
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    const Sums f = sums_above(kept, c, static_cast<T>(std::pow(w, b)), r);
    const double excess = f.mid + ties * w - 1;
    const double step = excess / (ties + f.low * std::pow(w, b - 1));
    if (excess <= 4 * kEps<T> || step <= kEps<T> * w) {
      for (int64_t i = 0; i < kept.n; ++i) kept.y[i] = kept.s[i] == c ? static_cast<T>(w) : kept.y[i];
      return f.mid + ties * w;
    }
    w = std::max(w - step, 0.0);
  }
  return kNaN<double>;
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
