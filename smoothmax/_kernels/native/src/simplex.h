// Rows over the simplex: "threshold" and "p_norm", and the product with their Jacobian.
#pragma once

#include "concave.h"
#include "narrow.h"
#include "threshold.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// The weights of a row without NaN or +inf, whose largest score is `top`.
template <class T>
void softmax_row(const T* x, int64_t d, T top, T gamma, T* y) {
  const Scaling<T> scale = over_gamma(kLog2E, gamma);
  const auto [total] = sums<T, 1>(x, d, -kInf<T>, [&](int64_t i, Vec<T> v, Vec<T>* part) {
    v = exp2<T>(scale(v - top));
    store_within<T>(y, i, d, v);
    part[0] += v;
  });
  const T factor = static_cast<T>(1 / total);
  map(y, d, T{0}, y, [&](int64_t, Vec<T> v) { return v * factor; });
}

// Fills a row that has no weights to find, and says so: NaN for bad input, 0 for an empty slice.
template <class T>
bool nothing_to_solve(const Seen<T>& seen, bool good_parameters, T* y, int64_t d) {
  const bool broken = seen.broken || !good_parameters, empty = seen.top == -kInf<T>;
  if (broken || empty) fill(y, d, broken ? kNaN<T> : T{0});
  return broken || empty;
}

// So close to 1, alpha is 1: the weights differ by less than their rounding, or than 1e-13.
template <class T>
constexpr T kAlmostOne = std::max(kEps<T>, T(1e-14));

template <class T>
void threshold(const Threshold<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Narrow<WholePower<1, T>, T> first_powers(problem);
  Narrow<WholePower<2, T>, T> squares(problem);
  Narrow<AnyPower<TsallisEquation, T>, T> powers(problem);
  Array<T> s(d), w(d);
  Array<int32_t> at(d);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = problem.x + row * d;
    T* y = problem.y + row * d;
    const T gamma = problem.gamma[row], alpha = problem.alpha[row], b = alpha - 1;
    if (b == 1        ? first_powers.takes(row)
        : b == T(0.5) ? squares.takes(row)
                      : b >= kAlmostOne<T> && b < 1 && powers.takes(row)) {
      continue;
    }
    const Seen<T> seen = look(x, d);
    if (nothing_to_solve(seen, gamma > 0 && gamma < kInf<T> && b >= 0 && b < kInf<T>, y, d)) continue;
    if (b < kAlmostOne<T>) {
      softmax_row(x, d, seen.top, gamma, y);
      continue;
    }
    const Kept<T> kept = keep_above<T>(-1, x, d, seen.top, over_gamma<T>(b, gamma), s, at, w);
    const double total = b == 1        ? whole_power_weights<1, false>(kept)
                         : b == T(0.5) ? whole_power_weights<2, false>(kept)
                         : b < 1       ? any_power_weights<TsallisEquation>(kept, b)
                                       : concave_weights(kept, b);
    give_back(kept, total, false, y, d);
  }
  first_powers.finish();
  squares.finish();
  powers.finish();
}

template <class T>
void p_norm(const Threshold<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Narrow<WholePower<1, T>, T> first_powers(problem);
  Narrow<AnyPower<PNormEquation, T>, T> powers(problem);
  Array<T> s(d), w(d);
  Array<int32_t> at(d);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = problem.x + row * d;
    T* y = problem.y + row * d;
    const T gamma = problem.gamma[row], b = problem.alpha[row] - 1;
    if (b == 1 ? first_powers.takes(row) : b > 0 && b < 1 && b != T(0.5) && powers.takes(row)) continue;
    const Seen<T> seen = look(x, d);
    if (nothing_to_solve(seen, gamma > 0 && gamma < kInf<T> && b > 0 && b <= 1, y, d)) continue;
    const Kept<T> kept = keep_above<T>(-1, x, d, seen.top, over_gamma<T>(1, gamma), s, at, w);
    const double total = b == 1        ? whole_power_weights<1, false>(kept)
                         : b == T(0.5) ? whole_power_weights<2, true>(kept)
                                       : any_power_weights<PNormEquation>(kept, b);
    give_back(kept, total, b != 1, y, d);
  }
  first_powers.finish();
  powers.finish();
}

// scale * s (v - <s, v> / sum s) for s = y^(2 - alpha) where y > 0, written over rates `s`. v is measured from
// `origin`.
template <class T, class Rate>
SMOOTHMAX_INLINE void product_row(const T* y, const T* v, int64_t d, T scale, T* s, T* out, T origin, Rate&& rate) {
  const auto [total, moment] = sums<T, 2>(y, d, T{0}, [&](int64_t i, Vec<T> w, Vec<T>* part) {
    Mask<T> on = w != Vec<T>{};  // NaN too
    if (!any<T>(on)) return store<T>(s + i, Vec<T>{});
    w = on ? rate(w) : Vec<T>{};
    store<T>(s + i, w);
    part[0] += w;
    part[1] += on ? w * (load_within(v, i, d, T{0}) - origin) : Vec<T>{};
  });
  const T mean = static_cast<T>(total == 0 ? 0 : moment / total);
  map(v, d, T{0}, out, [&](int64_t i, Vec<T> value) {
    Vec<T> w = load(s + i);
    return w != Vec<T>{} ? scale * w * (value - origin - mean) : Vec<T>{};
  });
}

// No greater, so that sums of products with v stay finite.
template <class T>
constexpr T kSteepest = std::numeric_limits<T>::max() / (1 << 27);

// The rates of a concave power, one of which may be by far the greatest; and v there, from which it is to be measured.
template <class T>
T steep_rates(const T* y, const T* v, int64_t d, T exponent, T* s) {
  each(y, d, T{0}, [&](int64_t i, Vec<T> w) {
    store<T>(s + i, w != Vec<T>{} ? smaller(power<T>(w, exponent), all<T>(kSteepest<T>)) + (w - w) : Vec<T>{});
  });
  int64_t at = 0;
  for (int64_t i = 1; i < d; ++i) at = s[i] > s[at] ? i : at;
  return v[at];
}

// Calls `run` with the function that maps weights w to w^exponent, for 0 <= exponent <= 1, and NaN to NaN.
template <class T, class Run>
SMOOTHMAX_INLINE void with_rate(T exponent, Run&& run) {
  if (exponent == 0) {
    run([](Vec<T> w) { return w == w ? all<T>(1) : w; });
  } else if (exponent == 1) {
    run([](Vec<T> w) { return w; });
  } else if (exponent == T(0.5)) {
    run([](Vec<T> w) {
      for (int64_t i = 0; i < kWidth<T>; ++i) w[i] = std::sqrt(w[i]);
      return w;
    });
  } else {
    // Computing with NaN: the power itself would not hand it on.
    run([exponent](Vec<T> w) { return power<T>(w, exponent) + (w - w) * exponent; });
  }
}

template <class T>
void threshold_product(const ThresholdProduct<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Array<T> s(d);
  for (int64_t row = begin; row < end; ++row) {
    const T *y = problem.y + row * d, *v = problem.v + row * d;
    T* out = problem.out + row * d;
    const T scale = problem.scale[row], exponent = 2 - problem.alpha[row];
    if (exponent < 0) {
      const T origin = steep_rates<T>(y, v, d, exponent, s);
      product_row<T>(s, v, d, scale, s, out, origin, [](Vec<T> w) { return w; });
    } else {
      with_rate(exponent, [&](auto rate) { product_row<T>(y, v, d, scale, s, out, 0, rate); });
    }
  }
}

// The same for a p-norm, whose Hessian has a rank-one part: see smoothmax/_solvers/_products.py.
template <class T, class Rate>
SMOOTHMAX_INLINE void p_norm_product_row(const T* y, const T* v, int64_t d, T scale, T p, T* s, T* out, Rate&& rate) {
  const auto [rates, weighted, mass, along, powers] = sums<T, 5>(y, d, T{0}, [&](int64_t i, Vec<T> w, Vec<T>* part) {
    const Vec<T> value = load_within(v, i, d, T{0});
    const Mask<T> on = w != Vec<T>{};  // NaN too
    const Vec<T> r = on ? rate(w) : Vec<T>{};
    store<T>(s + i, r);
    part[0] += r;
    part[1] += on ? r * value : Vec<T>{};
    part[2] += w;
    part[3] += on ? w * value : Vec<T>{};
    part[4] += on ? w * w / r : Vec<T>{};  // y^p
  });
  const double norm = powers == 0 ? 1 : std::pow(powers, 1.0 / p);
  const double diagonal = std::pow(norm, p - 2.0), rank_one = (2.0 - p) / (norm * norm);
  const double k_v = diagonal * weighted - rank_one * mass * along;
  const double k_1 = diagonal * rates - rank_one * mass * mass;
  const double ratio = k_1 == 0 ? 0 : k_v / k_1, strength = std::min<double>(scale / (p - 1.0), kSteepest<T>);
  const T mean = static_cast<T>(ratio), slope = static_cast<T>(strength * diagonal);
  const T rest = static_cast<T>(strength * rank_one * (along - mass * ratio));
  map(v, d, T{0}, out, [&](int64_t i, Vec<T> value) {
    const Vec<T> r = load(s + i), w = load_within(y, i, d, T{0});
    return r != Vec<T>{} ? slope * r * (value - mean) - rest * w : Vec<T>{};
  });
}

template <class T>
void p_norm_product(const ThresholdProduct<T>& problem, int64_t begin, int64_t end) {
  const int64_t d = problem.d;
  Array<T> s(d);
  for (int64_t row = begin; row < end; ++row) {
    const T *y = problem.y + row * d, *v = problem.v + row * d;
    T* out = problem.out + row * d;
    const T scale = problem.scale[row], p = problem.alpha[row];
    with_rate(2 - p, [&](auto rate) { p_norm_product_row<T>(y, v, d, scale, p, s, out, rate); });
  }
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
