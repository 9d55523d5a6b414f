// Rows in descending order, equal scores as they come: a plain stable sort, also of NaN.
//
// As many rows as there are lanes of double are sorted side by side by a network. A key is a double between 1 and 2:
// the bits of a score, and its position in the lowest ones. A score of 32 bits fits whole. Of 64 bits some are lost,
// and scores that only those tell apart are put right afterwards. Few rows, or long ones, are sorted by their bytes.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "columns.h"
#include "network.h"
#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// The bits of floats, as unsigned integers in descending order of the floats, and back: a float's bits are in its
// order, but for the sign, and negative ones run the other way. -0 becomes 0, by its bits: where subnormal numbers
// count as 0, adding 0 would lose them.
template <class Integers>
SMOOTHMAX_INLINE Integers descending(Integers bits) {
  const Integers sign = (Integers{} + 1) << (8 * sizeof(bits[0]) - 1);
  bits &= bits != sign;
  return bits ^ ((bits & sign) == Integers{} ? ~sign : Integers{});
}

template <class T>
class Sorter {
 public:
  // For rows of d scores, of which the first is at x, up to row `end`.
  Sorter(const T* x, int64_t d, int64_t end)
      : x_(x),
        d_(d),
        end_(end),
        places_(rounded_up(d, Network::kHeld)),
        room_(d + kRows),
        keys_(places_ * kRows),
        values_(room_ * kRows),
        order_(room_ * kRows),
        entries_(d),
        other_(d) {
    while ((int64_t{1} << bits_) < d) ++bits_;
  }

  // Rows are gone to one after the other.
  void go_to(int64_t row) {
    if (row >= first_ + n_) {
      first_ = row;
      n_ = std::min(kRows, end_ - row);
      sort();
    }
    row_ = row - first_;
  }

  // The scores of the row in descending order, and where they were.
  const T* values() const { return values(row_); }
  const int32_t* order() const { return order(row_); }

 private:
  static constexpr int64_t kRows = kWidth<double>;  // that are sorted at once
  // A network takes log2(d)^2 steps for all rows, and the passes over bytes about so many for each.
  static constexpr int64_t kStepsOfBytes = 20;
  static constexpr bool kFits = sizeof(T) == sizeof(float);  // score and position into a key

  using Integer = typename Lanes<T>::Integer;
  using Bits64 = Mask<double>;
  struct Entry {
    std::make_unsigned_t<Integer> key;
    int32_t at;
  };

  const T* x(int64_t row) const { return x_ + (first_ + row) * d_; }
  T* values(int64_t row) const { return values_ + row * room_; }
  int32_t* order(int64_t row) const { return order_ + row * room_; }

  void sort() {
    const bool side_by_side = bits_ * bits_ <= kStepsOfBytes * n_;
    if (side_by_side) by_network();
    for (int64_t row = 0; row < n_; ++row) {
      if (!side_by_side || !(kFits || put_right(values(row), order(row)))) by_bytes(row);
    }
  }

  // Scores from i on, as integers of 52 bits in their descending order.
  SMOOTHMAX_INLINE Bits64 integers(const T* x, int64_t i) const {
    if constexpr (kFits) {
      HalfVector scores = {};
      std::memcpy(&scores, x + i, sizeof(float) * static_cast<size_t>(std::min(kRows, d_ - i)));
      return __builtin_convertvector(descending((HalfIntegers)scores), Bits64) << 20;
    } else {
      return descending((Bits64)load_within(x, i, d_, 0.0)) >> 12;
    }
  }

  void by_network() {
    constexpr int64_t kOne = 0x3FF0000000000000, kFraction = 0x000FFFFFFFFFFFFF;
    const int64_t position = (int64_t{1} << (kFits ? 20 : bits_)) - 1;
    rows_to_columns<double>(
        d_, [&](int64_t row, int64_t i) { return (Vec<double>)integers(x(row < n_ ? row : 0), i); },
        [&](int64_t i, Vec<double> bits) {
          if (i < d_) store(keys_ + i * kRows, (Vec<double>)(((Bits64)bits & kFraction & ~position) | kOne | i));
        });
    for (int64_t i = d_; i < places_; ++i) store(keys_ + i * kRows, all<double>(2));
    Network(keys_, places_).sort();
    columns_to_rows<double>(
        n_, d_, [&](int64_t i) { return load(keys_ + i * kRows); },
        [&](int64_t row, int64_t i, Vec<double> key) {
          const HalfIntegers at = __builtin_convertvector((Bits64)key & position, HalfIntegers);
          std::memcpy(order(row) + i, &at, sizeof at);
          if constexpr (kFits) {
            const HalfIntegers bits = descending(__builtin_convertvector((Bits64)key >> 20, HalfIntegers));
            std::memcpy(values(row) + i, &bits, sizeof bits);
          }
        });
    for (int64_t row = 0; row < n_ && !kFits; ++row) {
      for (int64_t k = 0; k < d_; ++k) values(row)[k] = x(row)[order(row)[k]];
    }
  }

  // Sorts what is nearly sorted, by insertion; false where that takes too long.
  bool put_right(T* values, int32_t* order) const {
    int64_t left = 4 * d_;
    for (int64_t k = 1; k < d_; ++k) {
      if (!(values[k] > values[k - 1])) continue;
      const T value = values[k];
      const int32_t at = order[k];
      int64_t to = k;
      for (; to > 0 && value > values[to - 1]; --to) {
        values[to] = values[to - 1];
        order[to] = order[to - 1];
      }
      values[to] = value;
      order[to] = at;
      left -= k - to;
      if (left < 0) return false;
    }
    return true;
  }

  void by_bytes(int64_t row) {
    constexpr int kBytes = sizeof(T);
    int32_t counts[kBytes][256] = {};
    each(x(row), d_, T{0}, [&](int64_t i, Vec<T> scores) {
      const Mask<T> bits = descending((Mask<T>)scores);
      for (int64_t k = 0; k < std::min(kWidth<T>, d_ - i); ++k) {
        const Entry entry = {static_cast<std::make_unsigned_t<Integer>>(bits[k]), static_cast<int32_t>(i + k)};
        entries_[i + k] = entry;
        for (int byte = 0; byte < kBytes; ++byte) ++counts[byte][entry.key >> (8 * byte) & 255];
      }
    });
    Entry *from = entries_, *to = other_;
    for (int byte = 0; byte < kBytes; ++byte) {
      int32_t* count = counts[byte];
      if (count[from[0].key >> (8 * byte) & 255] == d_) continue;  // all have this byte
      int32_t before = 0;
      for (int value = 0; value < 256; ++value) {
        const int32_t n = count[value];
        count[value] = before;
        before += n;
      }
      for (int64_t i = 0; i < d_; ++i) to[count[from[i].key >> (8 * byte) & 255]++] = from[i];
      std::swap(from, to);
    }
    for (int64_t k = 0; k < d_; ++k) {
      order(row)[k] = from[k].at;
      values(row)[k] = x(row)[from[k].at];
    }
  }

  const T* x_;
  const int64_t d_, end_, places_, room_;
  int64_t first_ = 0, n_ = 0, row_ = 0;
  int bits_ = 0;  // of a position
  Array<double> keys_;
  Array<T> values_;
  Array<int32_t> order_;
  Array<Entry> entries_, other_;
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
