// Powers, the most of what an entropy costs: u^c = 2^(c log2 u). See smoothmax/_solvers/_power.py.
//
// Arguments are finite and results that would be subnormal are 0: whoever calls has looked for NaN and infinity first.
#pragma once

#include "vector.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// The polynomials, by rising degree, and where a number keeps its exponent.
//
//   log2(1 + f) = f P(f)                       float, |f| <= sqrt(2) - 1
//   log2(m) = g L(g^2), g = (m - 1) / (m + 1)  double: 2 / ln 2 times 1/(2k + 1), enough terms for |g| < 0.172
//   2^f = Q(f)                                 |f| <= 1/2; in double its Taylor series ln(2)^k / k!
template <class T>
struct Binary;

template <>
struct Binary<float> {
  static constexpr float kLog2[] = {1.442695004f,   -0.7213474682f, 0.4809107535f,  -0.3606932681f, 0.2879032609f,
                                    -0.2391698814f, 0.2160782255f,  -0.2058618805f, 0.1231096846f};
  static constexpr float kExp2[] = {
      1.0f, 0.6931472067f, 0.2402265092f, 0.05550327227f, 0.009618056679f, 0.001340042818f, 0.0001546144468f};
  static constexpr int kMantissa = 23;
  static constexpr int32_t kSqrtHalf = 0x3F3504F3;  // the bits of sqrt(1/2)
  static constexpr float kShift = 0x1.8p23f;        // adding it rounds to a whole number
  static constexpr float kLeast = -126, kMost = 127;
};

template <>
struct Binary<double> {
  static constexpr double kLog2[] = {2.8853900817779268,  0.9617966939259756,  0.5770780163555854, 0.4121985831111324,
                                     0.32059889797532526, 0.2623081892525388,  0.2219530832136867, 0.19235933878519512,
                                     0.16972882833987803, 0.15186263588304877, 0.13739952770371080};
  static constexpr double kExp2[] = {1.0,
                                     0.69314718055994531,
                                     0.24022650695910072,
                                     0.055504108664821580,
                                     0.0096181291076284772,
                                     0.0013333558146428443,
                                     1.5403530393381608e-4,
                                     1.5252733804059841e-5,
                                     1.3215486790144309e-6,
                                     1.0178086009239700e-7,
                                     7.0549116208011234e-9,
                                     4.4455382718708113e-10,
                                     2.5678435993488203e-11,
                                     1.3691488853904130e-12};
  static constexpr int kMantissa = 52;
  static constexpr int64_t kSqrtHalf = 0x3FE6A09E667F3BCD;
  static constexpr double kShift = 0x1.8p52;
  static constexpr double kLeast = -1022, kMost = 1023;
};

inline constexpr double kLog2E = 1.4426950408889634;

// The sum of coefficients[k] x^k.
template <class T, size_t N, size_t K = 0>
SMOOTHMAX_INLINE Vec<T> polynomial(const T (&coefficients)[N], Vec<T> x) {
  if constexpr (K == N - 1) {
    return all<T>(coefficients[K]);
  } else {
    return polynomial<T, N, K + 1>(coefficients, x) * x + coefficients[K];
  }
}

// log2(u (1 + error)) for u > 0 that is not subnormal, to first order in `error`.
template <class T>
SMOOTHMAX_INLINE Vec<T> log2(Vec<T> u, Vec<T> error = all<T>(0)) {
  using B = Binary<T>;
  constexpr typename Lanes<T>::Integer kFraction = (typename Lanes<T>::Integer{1} << B::kMantissa) - 1;
  Mask<T> whole = (Mask<T>)u;
  Mask<T> exponent = (whole - B::kSqrtHalf) & ~kFraction;
  Vec<T> m = (Vec<T>)(whole - exponent);
  Vec<T> fraction;
  if constexpr (sizeof(T) == 4) {
    Vec<T> f = m - T{1};
    fraction = f * polynomial<T>(B::kLog2, f);
  } else {
    Vec<T> g = (m - T{1}) / (m + T{1});
    fraction = g * polynomial<T>(B::kLog2, g * g);
  }
  // Added to the bits of a large whole number, a small one is added to its value: every instruction set can do that.
  Vec<T> k = (Vec<T>)((Mask<T>)all<T>(B::kShift) + (exponent >> B::kMantissa)) - B::kShift;
  return k + (fraction + error * T(kLog2E));
}

// 2^t; 0 below the least number that is not subnormal.
template <class T>
SMOOTHMAX_INLINE Vec<T> exp2(Vec<T> t) {
  using B = Binary<T>;
  Mask<T> none = t < all<T>(B::kLeast);
  t = smaller(greater(t, all<T>(B::kLeast)), all<T>(B::kMost));
  Vec<T> shifted = t + B::kShift;
  Mask<T> n = (Mask<T>)shifted - (Mask<T>)all<T>(B::kShift);
  Vec<T> scale = (Vec<T>)((n - typename Lanes<T>::Integer(B::kLeast - 1)) << B::kMantissa);
  return none ? Vec<T>{} : scale * polynomial<T>(B::kExp2, t - (shifted - B::kShift));
}

// u^c where u > 0, and 0 elsewhere; c is one for all lanes, or a vector.
template <class T, class C>
SMOOTHMAX_INLINE Vec<T> power(Vec<T> u, C c, Vec<T> error = all<T>(0)) {
  constexpr T kTiny = std::numeric_limits<T>::min();
  return u > Vec<T>{} ? exp2<T>(c * log2<T>(greater(u, all<T>(kTiny)), error)) : Vec<T>{};
}

}  // namespace smoothmax::SMOOTHMAX_TARGET
