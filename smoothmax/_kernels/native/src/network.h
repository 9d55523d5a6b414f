// Sorts columns of keys, one in each lane, by a network: a fixed sequence of exchanges, each a minimum and a maximum.
//
// Two sorted halves, the second one read backwards, rise and then fall. Exchanging such a sequence's halves, and then
// the halves of its halves, sorts it (Batcher's bitonic merge).
#pragma once

#include "vector.h"

namespace smoothmax::SMOOTHMAX_TARGET {

class Network {
 public:
  // So many keys at a time stay in registers.
  static constexpr int64_t kHeld = SMOOTHMAX_VECTOR_BYTES == 64 ? 16 : 8;

  // `places` keys in each column, a multiple of kHeld, position by position.
  Network(double* keys, int64_t places) : keys_(keys), places_(places) {}

  void sort() {
    int64_t size = kHeld;
    while (size < places_) size *= 2;
    sort(0, size);
  }

 private:
  using Keys = Vec<double>;

  static SMOOTHMAX_INLINE void exchange(Keys& a, Keys& b) {
    const Keys least = smaller(a, b);
    b = greater(a, b);
    a = least;
  }
  Keys key(int64_t i) const { return load(keys_ + i * kWidth<double>); }
  void set(int64_t i, Keys key) { store(keys_ + i * kWidth<double>, key); }
  SMOOTHMAX_INLINE void exchange(int64_t i, int64_t j) {
    Keys a = key(i), b = key(j);
    exchange(a, b);
    set(i, a);
    set(j, b);
  }

  // Sorts `size` keys from `begin` on. Those from `places_` on are not there: they would be the last, and stay so.
  void sort(int64_t begin, int64_t size) {
    if (begin >= places_) return;
    if (size == kHeld) return in_registers(begin, sorted<kHeld>);
    const int64_t half = size / 2, end = begin + size;
    sort(begin, half);
    sort(begin + half, half);
    for (int64_t j = std::min(end, places_) - 1; j >= begin + half; --j) exchange(begin + end - 1 - j, j);
    merge(begin, half);
    merge(begin + half, half);
  }

  // The same for keys that rise and then fall.
  void merge(int64_t begin, int64_t size) {
    if (begin >= places_) return;
    if (size == kHeld) return in_registers(begin, merged<kHeld>);
    const int64_t half = size / 2, quarter = size / 4;
    if (quarter < kHeld || begin + size > places_) {
      for (int64_t i = begin; i < std::min(begin + half, places_ - half); ++i) exchange(i, i + half);
      merge(begin, half);
      merge(begin + half, half);
      return;
    }
    // Two exchanges of each key while it is read.
    for (int64_t i = begin; i < begin + quarter; ++i) {
      Keys keys[4] = {key(i), key(i + quarter), key(i + half), key(i + half + quarter)};
      exchange(keys[0], keys[2]);
      exchange(keys[1], keys[3]);
      exchange(keys[0], keys[1]);
      exchange(keys[2], keys[3]);
      for (int64_t k = 0; k < 4; ++k) set(i + k * quarter, keys[k]);
    }
    for (int64_t k = 0; k < 4; ++k) merge(begin + k * quarter, quarter);
  }

  template <class Do>
  SMOOTHMAX_INLINE void in_registers(int64_t begin, Do&& run) {
    Keys keys[kHeld];
    for (int64_t i = 0; i < kHeld; ++i) keys[i] = key(begin + i);
    run(keys);
    for (int64_t i = 0; i < kHeld; ++i) set(begin + i, keys[i]);
  }
  template <int64_t kSize>
  static SMOOTHMAX_INLINE void sorted(Keys* keys) {
    if constexpr (kSize > 1) {
      sorted<kSize / 2>(keys);
      sorted<kSize / 2>(keys + kSize / 2);
      for (int64_t i = 0; i < kSize / 2; ++i) exchange(keys[i], keys[kSize - 1 - i]);
      merged<kSize / 2>(keys);
      merged<kSize / 2>(keys + kSize / 2);
    }
  }
  template <int64_t kSize>
  static SMOOTHMAX_INLINE void merged(Keys* keys) {
    if constexpr (kSize > 1) {
      for (int64_t i = 0; i < kSize / 2; ++i) exchange(keys[i], keys[i + kSize / 2]);
      merged<kSize / 2>(keys);
      merged<kSize / 2>(keys + kSize / 2);
    }
  }

  double* keys_;
  int64_t places_;
};

}  // namespace smoothmax::SMOOTHMAX_TARGET
