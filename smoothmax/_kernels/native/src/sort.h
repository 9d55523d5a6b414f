// The positions of a row from its largest score down, equal scores in order. A plain stable sort, also of NaN.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "rows.h"

namespace smoothmax::SMOOTHMAX_TARGET {

// Working memory of one thread, for rows of d scores.
template <class T>
class Sorter {
 public:
  explicit Sorter(int64_t d) : keys_(d), entries_(d), other_(d) {}

  void operator()(const T* x, int64_t d, int32_t* order) {
    // The places of a sort come in order, up or down.
    bool falls = true, rises = true;
    for (int64_t i = 0; i < d; ++i) {
      keys_[i] = key(x[i]);
      falls &= i == 0 || keys_[i - 1] <= keys_[i];
      rises &= i == 0 || keys_[i - 1] > keys_[i];
    }
    if (falls || rises) {
      for (int64_t k = 0; k < d; ++k) order[k] = static_cast<int32_t>(falls ? k : d - 1 - k);
    } else if (d <= kFew) {
      count_smaller(d, order);
    } else {
      by_bytes(d, order);
    }
  }

 private:
  using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  using Unsigned = std::make_unsigned_t<Key>;
  struct Entry {
    Unsigned key;
    int32_t at;
  };

  // Up to here d^2 comparisons, many at a time and without a branch, take less than the passes over bytes.
  static constexpr int64_t kFew = 96;
  static constexpr Unsigned kSign = Unsigned{1} << (8 * sizeof(T) - 1);

  // In the order of the scores from the largest down. A float's bits are in its order, but for the sign: negative ones
  // run the other way.
  static Key key(T x) {
    Unsigned bits;
    x += T{0};  // 0 for -0
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<Key>(bits & kSign ? bits ^ kSign : ~bits);
  }

  // Each goes behind all that are smaller, and its equals before it.
  void count_smaller(int64_t d, int32_t* order) const {
    const Key* keys = keys_;
    for (int64_t i = 0; i < d; ++i) {
      Key before = 0;
      for (int64_t j = 0; j < i; ++j) before += keys[j] <= keys[i];
      for (int64_t j = i + 1; j < d; ++j) before += keys[j] < keys[i];
      order[before] = static_cast<int32_t>(i);
    }
  }

  void by_bytes(int64_t d, int32_t* order) {
    constexpr int kBytes = sizeof(T);
    int32_t counts[kBytes][256] = {};
    for (int64_t i = 0; i < d; ++i) {
      const Unsigned key = static_cast<Unsigned>(keys_[i]) ^ kSign;
      entries_[i] = {key, static_cast<int32_t>(i)};
      for (int byte = 0; byte < kBytes; ++byte) ++counts[byte][key >> (8 * byte) & 255];
    }
    Entry *from = entries_, *to = other_;
    for (int byte = 0; byte < kBytes; ++byte) {
      int32_t* count = counts[byte];
      if (count[from[0].key >> (8 * byte) & 255] == d) continue;  // all have this byte
      int32_t before = 0;
      for (int value = 0; value < 256; ++value) {
        const int32_t n = count[value];
        count[value] = before;
        before += n;
      }
      for (int64_t i = 0; i < d; ++i) to[count[from[i].key >> (8 * byte) & 255]++] = from[i];
      std::swap(from, to);
    }
    for (int64_t k = 0; k < d; ++k) order[k] = from[k].at;
  }

  Array<Key> keys_;
  Array<Entry> entries_, other_;
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
