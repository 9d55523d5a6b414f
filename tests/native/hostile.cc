// Runs every kernel on random and hostile rows, for the sanitizers to watch, and checks what holds for any input: loops
// end, weights are NaN or lie in their domain, chains keep their order, sorted positions are a permutation.
//
// tests/native/sanitize compiles and runs it, for each width of vectors.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
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

constexpr int kKinds = 9;

// A row of one kind: plain, tied, with deleted positions, with an offset, spread, of zeros of both signs, subnormal
// numbers and the largest ones, with values that are no scores, empty, or with scores that only their last bits tell
// apart.
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
    if (kind == 8) v = 1 + static_cast<T>(generator() % 8) * std::numeric_limits<T>::epsilon();
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

// Rows of all kinds, one after the other.
template <class T>
std::vector<T> rows(int64_t n, int64_t d) {
  std::vector<T> x;
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<T> one_row = row<T>(d, static_cast<int>(i % kKinds));
    x.insert(x.end(), one_row.begin(), one_row.end());
  }
  return x;
}

// Solves rows together, and expects of each what it is alone: `solve(begin, end)` writes rows of d values to `y`.
template <class V, class Solve>
void expect_alone(std::vector<V>& y, int64_t d, const char* what, Solve&& solve) {
  const int64_t n = static_cast<int64_t>(y.size()) / d;
  solve(0, n);
  const std::vector<V> together = y;
  for (int64_t i = 0; i < n; ++i) solve(i, i + 1);
  // To the bit; of two NaN that are added the sum is either, as the compiler has it.
  const auto same = [](V a, V b) { return std::memcmp(&a, &b, sizeof(V)) == 0 || (a != a && b != b); };
  expect(std::equal(y.begin(), y.end(), together.begin(), same), what, d);
}

template <class T>
void side_by_side(int64_t d) {
  constexpr int64_t kRows = 37;
  const T gamma = T(0.7);
  const std::vector<T> x = rows<T>(kRows, d);
  std::vector<T> alpha(kRows), y(x);
  for (T& a : alpha) a = pick<T>({T(1.001), T(1.3), T(1.5), T(1.9), T(2), T(2), T(3)});
  const Threshold<T> problem = {x.data(), one(gamma), {alpha.data(), 1, 1}, y.data(), d};
  expect_alone(y, d, "threshold: neighbours",
               [&](int64_t begin, int64_t end) { table<T>(kernels).threshold(problem, begin, end); });
  expect_alone(y, d, "p_norm: neighbours",
               [&](int64_t begin, int64_t end) { table<T>(kernels).p_norm(problem, begin, end); });
}

// Rows are sorted side by side, or one by one by their bytes: in each way as the standard library does.
template <class T>
void sorting(int64_t d) {
  constexpr int64_t kRows = 37;
  const std::vector<T> x = rows<T>(kRows, d), weights = row<T>(d, 0), ones(x.size(), 1);
  std::vector<T> values(x), y(x);
  std::vector<int32_t> rank(x.size()), order(static_cast<size_t>(d));
  for (const int64_t step : {kRows, int64_t{1}}) {
    for (int64_t i = 0; i < kRows; i += step) {
      table<T>(kernels).sort({x.data(), values.data(), rank.data(), d}, i, i + step);
    }
    for (int64_t i = 0; i < kRows; ++i) {
      const T* scores = x.data() + i * d;
      if (broken(std::vector<T>(scores, scores + d))) continue;
      for (size_t k = 0; k < order.size(); ++k) order[k] = static_cast<int32_t>(k);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
      bool same = true;
      for (int64_t k = 0; k < d; ++k) {
        const int32_t at = order[static_cast<size_t>(k)];
        same =
            same && rank[static_cast<size_t>(i * d + at)] == k && values[static_cast<size_t>(i * d + k)] == scores[at];
      }
      expect(same, "sort: another order", d);
    }
  }
  std::vector<int32_t> orders(x.size());
  std::vector<int8_t> ties(x.size());
  const T gamma = 2;
  const auto descending_weights = [&] {
    std::vector<T> w = weights;
    std::sort(w.begin(), w.end(), std::greater<T>());
    return w;
  }();
  const Permutahedron<T> permutahedron = {x.data(),    one(gamma), many(descending_weights), y.data(), orders.data(),
                                          ties.data(), d};
  expect_alone(y, d, "permutahedron: neighbours",
               [&](int64_t begin, int64_t end) { table<T>(kernels).permutahedron(permutahedron, begin, end); });
  const Ranks<T> ranks = {x.data(), many(descending_weights), y.data(), orders.data(), ties.data(), d};
  expect_alone(y, d, "ranks: neighbours",
               [&](int64_t begin, int64_t end) { table<T>(kernels).ranks(ranks, begin, end); });
  const SegmentMean<T> segments = {x.data(), ties.data(), ones.data(), y.data(), d};
  expect_alone(y, d, "segment_mean: neighbours",
               [&](int64_t begin, int64_t end) { table<T>(kernels).segment_mean(segments, begin, end); });
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
    for (int kind = 0; kind < kKinds; ++kind) {
      for (int64_t d : {1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 100, 257}) {
        all_of<float>(d, kind);
        all_of<double>(d, kind);
      }
    }
  }
  for (int64_t d : {1, 2, 15, 16, 17, 50, 64, 130, 500, 1100, 4097}) {
    sorting<float>(d);
    sorting<double>(d);
  }
  std::printf("%s, vectors of %d bytes: %d failures\n", kernels.name, SMOOTHMAX_VECTOR_BYTES, failures);
  return failures == 0 ? 0 : 1;
}
