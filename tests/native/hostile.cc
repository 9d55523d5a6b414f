// Runs every kernel on random and hostile rows, for the sanitizers to watch, and checks what holds for any input: loops
// end, weights are NaN or lie in their domain, chains keep their order, sorted positions are a permutation.
//
// tests/native/sanitize compiles and runs it, for each width of vectors.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../smoothmax/_kernels/native/src/kernels.cc"

namespace {

using namespace smoothmax;  // NOLINT
const auto& kernels = SMOOTHMAX_TARGET::kernels;

int failures = 0;
std::mt19937 generator(0);

template <class T>
T pick(const std::vector<T>& from) {
  return from[generator() % from.size()];
}

int kind_now = 0;

void expect(bool holds, const char* what, int64_t d) {
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED: %s, length %lld, kind %d\n", what, static_cast<long long>(d), kind_now);
}

// A row of one kind: plain, tied, with deleted positions, with an offset, spread, or with values that are no scores.
template <class T>
std::vector<T> row(int64_t d, int kind) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T most = std::numeric_limits<T>::max(), least = std::numeric_limits<T>::denorm_min();
  std::normal_distribution<double> normal;
  std::vector<T> x(static_cast<size_t>(d));
  for (T& v : x) {
    v = static_cast<T>(normal(generator));
    if (kind == 1) v = std::round(v);
    if (kind == 2 && generator() % 2) v = -inf;
    if (kind == 3) v += T(1e8);
    if (kind == 4) v *= T(1e4);
    if (kind == 5) v = pick<T>({0, -T(0), least, -least, most, -most, 1, -1, -inf});
    if (kind == 6) v = pick<T>({0, 1, inf, nan, -inf});
    if (kind == 7) v = -inf;
  }
  return x;
}

template <class T>
bool broken(const std::vector<T>& x) {
  for (T v : x) {
    if (!(v < std::numeric_limits<T>::infinity())) return true;
  }
  return false;
}

// Weights are all NaN, or between 0 and `most`, with a sum of `total` (0 where there is nothing to share).
template <class T>
void expect_weights(const std::vector<T>& y, double total, double most, bool must_be_nan, const char* what) {
  double sum = 0;
  size_t nans = 0;
  bool inside = true;
  for (T v : y) {
    nans += v != v;
    inside = inside && v >= 0 && v <= most;
    sum += v;
  }
  const auto d = static_cast<int64_t>(y.size());
  if (must_be_nan || nans > 0) return expect(nans == y.size(), what, d);
  expect(inside && (sum == 0 || std::abs(sum - total) <= 1e-4 * total), what, d);
}

template <class T>
PerRow<T> one(const T& value) {
  return {&value, 1, 0};
}

template <class T>
PerRow<T> many(const std::vector<T>& values) {
  return {values.data(), static_cast<int64_t>(values.size()), 0};
}

template <class T>
void simplex(int64_t d, int kind) {
  std::vector<T> y(static_cast<size_t>(d)), v = row<T>(d, 0), out(v);
  for (T alpha :
       {T(1), T(1.001), T(1.3), T(1.5), T(2), T(3), T(40), T(100), T(0.5), std::numeric_limits<T>::quiet_NaN()}) {
    const std::vector<T> x = row<T>(d, kind);
    const T gamma = pick<T>({1, T(0.1), T(1e3), T(1e-30)}), scale = 1;
    table<T>(kernels).threshold({x.data(), one(gamma), one(alpha), y.data(), d}, 0, 1);
    expect_weights(y, 1, 1 + 1e-6, broken(x) || !(alpha >= 1), "threshold");
    table<T>(kernels).threshold_product({y.data(), v.data(), one(alpha), one(scale), out.data(), d}, 0, 1);
    table<T>(kernels).p_norm({x.data(), one(gamma), one(alpha), y.data(), d}, 0, 1);
    table<T>(kernels).p_norm_product({y.data(), v.data(), one(alpha), one(scale), out.data(), d}, 0, 1);
    expect_weights(y, 1, 1 + 1e-6, broken(x) || !(alpha > 1 && alpha <= 2), "p_norm");
  }
}

// Rows of all kinds and with several alphas, solved together: each as if it were alone.
template <class T>
void side_by_side(int64_t d) {
  constexpr int64_t kRows = 37;
  const T gamma = T(0.7);
  std::vector<T> x, alpha, y(static_cast<size_t>(kRows * d)), alone(static_cast<size_t>(d));
  for (int64_t i = 0; i < kRows; ++i) {
    const std::vector<T> one_row = row<T>(d, static_cast<int>(i % 8));
    x.insert(x.end(), one_row.begin(), one_row.end());
    alpha.push_back(pick<T>({T(1.3), T(1.5), T(2), T(2)}));
  }
  table<T>(kernels).threshold({x.data(), one(gamma), {alpha.data(), 1, 1}, y.data(), d}, 0, kRows);
  for (int64_t i = 0; i < kRows; ++i) {
    table<T>(kernels).threshold({x.data() + i * d, one(gamma), one(alpha[static_cast<size_t>(i)]), alone.data(), d}, 0,
                                1);
    expect(std::memcmp(y.data() + i * d, alone.data(), sizeof(T) * alone.size()) == 0, "threshold: neighbours", d);
  }
}

template <class T>
void capped(int64_t d, int kind) {
  std::vector<T> y(static_cast<size_t>(d));
  for (T alpha : {T(0), T(1), T(1.2), T(1.5), T(2), T(4), T(40)}) {
    const std::vector<T> x = row<T>(d, kind);
    const T gamma = pick<T>({1, T(0.1), T(1e3)}), total = pick<T>({0, 1, T(1.5), T(d) / 2, T(d), T(d + 1)});
    const bool by_position = generator() % 2;
    std::vector<T> upper(static_cast<size_t>(by_position ? d : 1), pick<T>({1, T(0.5), 2}));
    table<T>(kernels).capped({x.data(), one(gamma), one(alpha), one(total), many(upper), y.data(), d}, 0, 1);
    expect_weights(y, total, upper[0] * (1 + 1e-6), broken(x), "capped");
  }
}

template <class T>
T largest_of(const std::vector<T>& v) {
  return *std::max_element(v.begin(), v.end());
}

template <class T>
void chain(int64_t d, int kind) {
  const std::vector<T> x = row<T>(d, kind);
  std::vector<T> t(x), mean(x);
  std::vector<int8_t> jumps(x.size());
  const bool by_border = generator() % 2;
  const int64_t size = by_border ? d - 1 : 1;
  std::vector<T> up(static_cast<size_t>(size)), down(up);
  for (T& v : up) v = pick<T>({0, T(0.1), 1, T(1e6), std::numeric_limits<T>::infinity()});
  for (T& v : down) v = pick<T>({0, T(0.1), 1, T(1e6), std::numeric_limits<T>::infinity()});
  table<T>(kernels).chain({x.data(), many(up), many(down), t.data(), jumps.data(), d}, 0, 1);
  expect(jumps.back() == 0, "the last jump", d);
  for (int64_t i = 0; i + 1 < d; ++i) {
    if (broken(x) || t[0] != t[0]) {
      expect(t[i] != t[i], "chain of NaN", d);
    } else if (x[i] > -std::numeric_limits<T>::infinity() && x[i + 1] > -std::numeric_limits<T>::infinity()) {
      const auto border = static_cast<size_t>(by_border ? i : 0);
      expect(jumps[i] != 0 || t[i] == t[i + 1], "chain: fused", d);
      // Without any force the sign of a jump means nothing.
      if (up[border] + down[border] > 0) expect(jumps[i] != 1 || t[i] <= t[i + 1], "chain: rises", d);
    }
  }
  // The two ways to solve a row agree: sweeps, and dynamic programming in double. A threshold that is found from sums
  // of other numbers may put a tie apart, so values are compared, not jumps.
  using namespace smoothmax::baseline;
  const auto at = spread(x.data(), d, look(x.data(), d).top);
  if (size > 0 && !broken(x) && at.reach < 1e6 && largest_of(up) < 1e7 && largest_of(down) < 1e7) {
    std::vector<T> alone(x);
    std::vector<Piece> pieces(static_cast<size_t>(2 * d + 2));
    std::vector<double> lo(x.size()), hi(x.size());
    chain_row(x.data(), up.data(), size == 1, down.data(), size == 1, d, at, pieces.data(), lo.data(), hi.data(),
              alone.data(), jumps.data());
    const double near = 64 * kEps<T> * (at.reach + std::abs(at.centre) + 1) * static_cast<double>(d);
    for (size_t i = 0; i < x.size(); ++i) expect(!(std::abs(t[i] - alone[i]) > near), "chain: another answer", d);
  }
  const std::vector<T> weight(x.size(), 1), v = row<T>(d, 0);
  table<T>(kernels).segment_mean({v.data(), jumps.data(), weight.data(), mean.data(), d}, 0, 1);
  expect(!broken(mean), "segment_mean", d);
}

template <class T>
void ranks(int64_t d, int kind) {
  const std::vector<T> x = row<T>(d, kind), weights(x.size(), T(0.1));
  std::vector<T> t(x);
  std::vector<int32_t> order(x.size());
  std::vector<int8_t> ties(x.size());
  table<T>(kernels).ranks({x.data(), many(weights), t.data(), order.data(), ties.data(), d}, 0, 1);
  std::vector<bool> seen(x.size());
  for (int32_t at : order) {
    expect(at >= 0 && at < d && !seen[static_cast<size_t>(at)], "ranks: a permutation", d);
    seen[static_cast<size_t>(at)] = true;
  }
  for (int64_t k = 0; k + 1 < d && !broken(x) && t[0] == t[0]; ++k)
    expect(t[order[k]] >= t[order[k + 1]], "ranks: in order", d);
}

template <class T>
void all_of(int64_t d, int kind) {
  kind_now = kind;
  simplex<T>(d, kind);
  capped<T>(d, kind);
  chain<T>(d, kind);
  ranks<T>(d, kind);
  if (kind == 0) side_by_side<T>(d);
}

}  // namespace

int main() {
  for (int round = 0; round < 3; ++round) {
    for (int kind = 0; kind < 8; ++kind) {
      for (int64_t d : {1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 100, 257}) {
        all_of<float>(d, kind);
        all_of<double>(d, kind);
      }
    }
  }
  std::printf("%s, vectors of %d bytes: %d failures\n", kernels.name, SMOOTHMAX_VECTOR_BYTES, failures);
  return failures == 0 ? 0 : 1;
}
