// Narrow rows over the simplex, alpha or p up to 2: as many side by side as a vector has lanes.
//
// A row of a hundred scores fills a few vectors, and what is done in them waits for their sums. Here a lane is a row,
// so that nothing is summed across lanes: the searches are those of threshold.h in all rows at once. A row that has
// arrived stays as it is, so that none depends on its neighbours.
#pragma once

#include "columns.h"
#include "threshold.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// Scores and weights of the rows, position by position.
template <class T>
struct Block {
  int64_t d;
  T *scores, *weights;

  Vec<T> z(int64_t i) const { return load(scores + i * kWidth<T>); }
  Vec<T> y(int64_t i) const { return load(weights + i * kWidth<T>); }
  void set(int64_t i, Vec<T> y) const { store(weights + i * kWidth<T>, y); }

  // N sums over the positions: add(i, part) adds what is at i.
  template <int64_t N, class Add>
  SMOOTHMAX_INLINE std::array<Wide<T>, N> sums(Add&& add) const {
    std::array<Wide<T>, N> result = {};
    for (int64_t start = 0; start < d; start += kBlock) {
      Vec<T> part[N] = {};
      for (int64_t i = start, end = std::min(start + kBlock, d); i < end; ++i) add(i, part);
      for (int64_t m = 0; m < N; ++m) {
        const Wide<T> wide = widened<T>(part[m]);
        for (int64_t k = 0; k < Wide<T>::kParts; ++k) result[m].part[k] += wide.part[k];
      }
    }
    return result;
  }
};

// Alpha = 2 or 1.5, R = 1 or 2: `whole_power_weights`.
template <int R, class T>
class WholePower {
 public:
  static constexpr int64_t kWidest = 256;  // the scores of the rows stay in the nearest cache
  static constexpr bool kInProportion = false;
  static double scale(T) { return 1.0 / R; }  // of the scores, over gamma
  const Wide<T>& total() const { return total_; }

  void begin(const Block<T>& block, Mask<T> solvable, const T*) {
    noise_ = noise<T>(block.d);
    const auto moving = widened_mask<T>(solvable);
    for (int64_t k = 0; k < kParts; ++k) {
      rows_[k] = Rows{};
      rows_[k].t = all<double>(-1);
      rows_[k].moving = moving[k];
    }
  }

  // A step of Newton's method in all rows that move; whether some still do.
  bool pass(const Block<T>& block) {
    const double enough = 2 * std::sqrt(kEps<T>);
    const Vec<T> t = gathered([](const Rows& rows) { return rows.t; });
    const auto f = block.template sums<2>([&](int64_t i, Vec<T>* part) {
      const Vec<T> u = positive<T>(block.z(i) - t);
      part[0] += R == 1 ? (u > Vec<T>{} ? all<T>(1) : Vec<T>{}) : u;
      part[1] += R == 1 ? u : u * u;
    });
    Mask<double> left = {};
    for (int64_t k = 0; k < kParts; ++k) {
      Rows& rows = rows_[k];
      const Vec<double> low = f[0].part[k], mid = f[1].part[k], here = rows.t;
      const auto [residual, step] = newton<R>(low, mid);
      const Vec<double> next = R == 1 ? rounded_down<T>(here, step) : rounded<T>(here + step);
      const Mask<double> moving = rows.moving, later = rows.passes > Vec<double>{};
      const Vec<double> before = later ? greater(magnitude(rows.now), magnitude(step)) : step;
      const Mask<double> there =
          R == 1 ? (step >= Vec<double>{}) & ((low == rows.support) | (next == here))
                 : (magnitude(R * step) <= -enough * here) & leaves_rounding<T>(residual, step, before);
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
  bool weigh(const Block<T>& block) {
    const Vec<T> t = gathered([](const Rows& rows) { return rows.t; });
    const Vec<T> rest = gathered([](const Rows& rows) { return R == 1 ? positive<double>(rows.now) : rows.now; });
    const auto f = block.template sums<1>([&](int64_t i, Vec<T>* part) {
      const Vec<T> y = whole_power<R, T>(block.z(i), t, rest);
      block.set(i, y);
      part[0] += y;
    });
    total_ = f[0];
    Mask<double> left = {};
    for (int64_t k = 0; k < kParts && R != 1; ++k) {
      Rows& rows = rows_[k];
      const Vec<double> total = total_.part[k], taken = R * rounded<T>(rows.now) * rows.low;
      const Mask<double> linear = stays_linear(rows.mid, total, taken, noise_), solved = rows.passes > Vec<double>{};
      rows.moving = solved & ~rows.stalled & ~linear & (rows.t == rows.t);
      rows.t = rows.moving ? rows.next : rows.t;
      left |= rows.moving;
    }
    return any<double>(left);
  }

 private:
  static constexpr int64_t kParts = Wide<T>::kParts;

  // What is known of the rows of one vector of double.
  struct Rows {
    Vec<double> t, next, low, mid, now, support, passes;
    Mask<double> moving, stalled;
  };

  template <class Of>
  Vec<T> gathered(Of&& of) const {
    Wide<T> wide;
    for (int64_t k = 0; k < kParts; ++k) wide.part[k] = of(rows_[k]);
    return narrowed<T>(wide);
  }

  double noise_;
  Rows rows_[kParts];
  Wide<T> total_;
};

// Any other: `any_power_weights`.
template <class Of, class T>
class AnyPower {
 public:
  static constexpr int64_t kWidest = 128;  // powers take long, and are taken here of scores without weight too
  static constexpr bool kInProportion = Of::kInProportion;
  static double scale(T alpha) { return Of::scale(alpha - 1); }
  const Wide<T>& total() const { return total_; }

  void begin(const Block<T>& block, Mask<T> solvable, const T* alpha) {
    const auto [kept] = block.template sums<1>(
        [&](int64_t i, Vec<T>* part) { part[0] += block.z(i) > all<T>(-1) ? all<T>(1) : Vec<T>{}; });
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      solvable_[lane] = moves_[lane] = solvable[lane] != 0;
      const int64_t n = static_cast<int64_t>(kept.of_lane(lane));
      rows_[lane] = PowerSearch<Of, T>(alpha[lane] - 1, n);
      r_[lane] = rows_[lane].r();
      lacking_[lane] = rows_[lane].lacking() ? -1 : 0;
      tau_[lane] = -1;
      rest_[lane] = 0;
    }
  }

  bool pass(const Block<T>& block) {
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      if (!moves_[lane]) continue;
      solvable_[lane] = moves_[lane] = rows_[lane].move();
      tau_[lane] = rows_[lane].tau();
      rest_[lane] = rows_[lane].rest();
    }
    const auto [low, mid, high] = block.template sums<3>(
        [&](int64_t i, Vec<T>* part) { block.set(i, power_terms<T>(block.z(i), tau_, rest_, r_, lacking_, part)); });
    bool left = false;
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      if (!moves_[lane]) continue;
      moves_[lane] = !rows_[lane].arrives({low.of_lane(lane), mid.of_lane(lane), high.of_lane(lane)});
      left |= moves_[lane];
    }
    return left;
  }

  bool weigh(const Block<T>& block) {
    Vec<T> last;
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) last[lane] = rows_[lane].last();
    total_ = block.template sums<1>([&](int64_t i, Vec<T>* part) {
      const Vec<T> y = last_step<T>(block.z(i), tau_, rest_, block.y(i), last);
      block.set(i, y);
      part[0] += y;
    })[0];
    bool left = false;
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      moves_[lane] = solvable_[lane] && !rows_[lane].ends(total_.of_lane(lane));
      left |= moves_[lane];
      if (!solvable_[lane]) total_.set_lane(lane, kNaN<double>);
    }
    return left;
  }

 private:
  PowerSearch<Of, T> rows_[kWidth<T>];
  bool solvable_[kWidth<T>], moves_[kWidth<T>];
  Vec<T> tau_, rest_, r_;
  Mask<T> lacking_;
  Wide<T> total_;
};

template <class Search, class T>
class Narrow {
 public:
  explicit Narrow(const Threshold<T>& problem)
      : problem_(problem), z_(room(problem.d)), y_(room(problem.d)), block_{problem.d, z_, y_} {}

  // Takes a row, to be solved with the next ones or when there are no more; false if it is too wide.
  bool takes(int64_t row) {
    if (block_.d > Search::kWidest) return false;
    row_[n_++] = row;
    if (n_ == kWidth<T>) solve();
    return true;
  }
  void finish() {
    if (n_ > 0) solve();
  }

 private:
  static int64_t room(int64_t d) { return d <= Search::kWidest ? rounded_up(d, kWidth<T>) * kWidth<T> : 0; }

  void solve() {
    for (int64_t lane = n_; lane < kWidth<T>; ++lane) row_[lane] = row_[0];
    take();
    do {
      while (search_.pass(block_)) {
      }
    } while (search_.weigh(block_));
    give();
    n_ = 0;
  }

  // The scores less the largest of their row, and scaled.
  void take() {
    Vec<T> top = all<T>(-kInf<T>);
    Scaling<Vec<T>> scale = {};
    Mask<T> usable = ~Mask<T>{};
    const auto from = [this](int64_t lane, int64_t i) {
      return load_within(problem_.x + row_[lane] * block_.d, i, block_.d, -kInf<T>);
    };
    rows_to_columns<T>(block_.d, from, [&](int64_t i, Vec<T> x) {
      store(z_ + i * kWidth<T>, x);
      top = greater(x, top);
      usable &= x < all<T>(kInf<T>);
    });
    T alpha[kWidth<T>];
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      const T gamma = problem_.gamma[row_[lane]];
      alpha[lane] = problem_.alpha[row_[lane]];
      const bool good = gamma > 0 && gamma < kInf<T>;
      const Scaling<T> of_row = over_gamma<T>(Search::scale(alpha[lane]), good ? gamma : kNaN<T>);
      scale.first[lane] = of_row.first;
      scale.second[lane] = of_row.second;
    }
    // Far below the threshold they are numbers still.
    for (int64_t i = 0; i < block_.d; ++i) store(z_ + i * kWidth<T>, greater(scale(block_.z(i) - top), all<T>(-4)));
    broken_ = ~usable | (scale.second != scale.second);
    empty_ = top == all<T>(-kInf<T>);
    search_.begin(block_, ~(broken_ | empty_), alpha);
  }

  // The weights, divided by their sums.
  void give() {
    Wide<T> factor = search_.total();
    for (int64_t k = 0; k < Wide<T>::kParts; ++k) {
      const Vec<double> total = factor.part[k];
      const Mask<double> arrived =
          Search::kInProportion ? total > Vec<double>{} : magnitude(total - 1) < all<double>(kNearly);
      factor.part[k] = arrived ? 1 / total : all<double>(kNaN<double>);
    }
    const Vec<T> by = narrowed<T>(factor), otherwise = broken_ ? all<T>(kNaN<T>) : Vec<T>{};
    const Mask<T> solved = ~(broken_ | empty_);
    columns_to_rows<T>(
        n_, block_.d, [&](int64_t i) { return solved ? block_.y(i) * by : otherwise; },
        [&](int64_t lane, int64_t i, Vec<T> y) {
          store_within<T>(problem_.y + row_[lane] * block_.d, i, block_.d, y);
        });
  }

  const Threshold<T>& problem_;
  Array<T> z_, y_;
  const Block<T> block_;
  int64_t row_[kWidth<T>], n_ = 0;
  Mask<T> broken_, empty_;
  Search search_;
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
