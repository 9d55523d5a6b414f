// Chains, as many rows side by side as a vector has lanes: the sweeps of smoothmax/_solvers/_chain.py.
//
// What is true or false of a position is a bit for each row, and to decide about a border of all rows takes a few
// integer operations. Rows take part in sweeps until all have settled, which changes nothing in those that have.
#pragma once

#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// The border behind a position, and the answer to "is t here above the mean?", as it depends on the answer behind it.
struct Border {
  Bits cut, rises, if_above, if_below;
};

template <class T>
class Sweeps {
 public:
  explicit Sweeps(int64_t d) : d_(d), z_(d * kWidth<T>), next_(d * kWidth<T>), borders_(d) {}

  // Where the data of row `lane` go, position by position, kWidth apart: scores about a centre, +inf where deleted.
  T* row(int64_t lane) { return z_ + lane; }

  // Solves; `up(i)` and `down(i)` are the strengths of border i. Returns the rows that have not settled after `limit`
  // rounds.
  template <class Up, class Down>
  Bits solve(const Up& up, const Down& down, Vec<T> slack, int limit) {
    cut_at_first(up, down);
    mean_ = Vec<T>{};
    Bits changed = 0;
    // The first question is 0, which is no mean of a segment where a border was cut already: it cannot be the last.
    for (int round = 0; round < limit && (round < 2 || changed != 0); ++round) {
      changed = decide(up, down, ask(up, down, slack));
    }
    return changed;
  }

  // Puts the solution, the means of the segments, in the place of the data.
  void fill_in() {
    Vec<T> mean = mean_;
    borders_[d_ - 1] = {};  // none
    for (int64_t i = 0; i < d_; ++i) {
      store(z_ + i * kWidth<T>, mean);
      if (borders_[i].cut != 0) mean = lanes<T>(borders_[i].cut) ? load(next_ + i * kWidth<T>) : mean;
    }
  }

  // 1 where a row rises behind a position, -1 where it falls, 0 within a segment and at the end.
  int8_t jump(int64_t i, int64_t lane) const {
    const int cut = borders_[i].cut >> lane & 1, rises = borders_[i].rises >> lane & 1;
    return static_cast<int8_t>(cut * (2 * rises - 1));
  }

 private:
  Vec<T> z(int64_t i) const { return load(z_ + i * kWidth<T>); }

  // Cuts where no force can make up the difference, and where there is none.
  template <class Up, class Down>
  void cut_at_first(const Up& up, const Down& down) {
    Vec<T> most_up = {}, most_down = {};
    for (int64_t i = 0; i + 1 < d_; ++i) {
      most_up = greater(up(i), most_up);
      most_down = greater(down(i), most_down);
    }
    const Vec<T> reach = 2 * (most_up + most_down);
    for (int64_t i = 0; i + 1 < d_; ++i) {
      const Vec<T> step = z(i + 1) - z(i), size = magnitude(step);
      const Mask<T> far = (size > reach) & (size < all<T>(kInf<T>));
      store<T>(next_ + i * kWidth<T>, Vec<T>{});
      borders_[i] = {};
      borders_[i].cut = static_cast<Bits>(bits<T>(far | (up(i) + down(i) == Vec<T>{})));
      borders_[i].rises = static_cast<Bits>(bits<T>(step > Vec<T>{}) & borders_[i].cut);
    }
  }

  // Left to right: the forces, if every position were at the mean of its segment. Returns the answer at the last.
  template <class Up, class Down>
  Bits ask(const Up& up, const Down& down, Vec<T> slack) {
    Vec<T> message = {}, mean = mean_;
    for (int64_t i = 0; i + 1 < d_; ++i) {
      const Vec<T> here = z(i), high = up(i), low = -down(i);
      const Vec<T> force = (here < all<T>(kInf<T>) ? mean - here : Vec<T>{}) + message;
      const Mask<T> cut = lanes<T>(borders_[i].cut);
      const Vec<T> fixed = lanes<T>(borders_[i].rises) ? high : low;
      borders_[i].if_above = static_cast<Bits>(bits<T>(force < (cut ? fixed : high + slack)));
      borders_[i].if_below = static_cast<Bits>(bits<T>(force < (cut ? fixed : low - slack)));
      message = cut ? fixed : smaller(greater(force, low), high);
      mean = cut ? load(next_ + i * kWidth<T>) : mean;
    }
    const Vec<T> last = z(d_ - 1);
    return static_cast<Bits>(bits<T>((last < all<T>(kInf<T>) ? mean - last : Vec<T>{}) + message < Vec<T>{}));
  }

  // Right to left: the answers, the borders that they cut, and the means of the segments. Returns the rows that
  // changed.
  template <class Up, class Down>
  Bits decide(const Up& up, const Down& down, Bits above) {
    const Vec<T> one = all<T>(1);
    Vec<T> sum = {}, count = {};
    const auto add = [&](Vec<T> z) {
      const Mask<T> there = z < all<T>(kInf<T>);
      sum += there ? z : Vec<T>{};
      count += there ? one : Vec<T>{};
    };
    add(z(d_ - 1));
    Bits changed = 0;
    for (int64_t i = d_ - 2; i >= 0; --i) {
      Border& border = borders_[i];
      const Bits answer = static_cast<Bits>((above & border.if_above) | (~above & border.if_below));
      const Bits fresh = static_cast<Bits>((answer ^ above) & ~border.cut);
      border.cut |= fresh;
      border.rises |= fresh & above;
      changed |= fresh;
      above = answer;
      if (border.cut != 0) {
        // The force at a cut ends the sum of the segment on its right and begins the one on its left.
        const Mask<T> cut = lanes<T>(border.cut);
        const Vec<T> fixed = lanes<T>(border.rises) ? up(i) : -down(i);
        store<T>(next_ + i * kWidth<T>, (sum - fixed) / greater(count, one));
        sum = cut ? fixed : sum;
        count = cut ? Vec<T>{} : count;
      }
      add(z(i));
    }
    mean_ = sum / greater(count, one);
    return changed;
  }

  int64_t d_;
  Array<T> z_, next_;  // next: the mean of the segment that begins behind a border, where it is cut
  Array<Border> borders_;
  Vec<T> mean_ = {};  // of the first segment
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
