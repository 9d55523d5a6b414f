// What JAX calls: one handler for each problem and dtype. It cuts the rows into pieces and hands them to the kernels of
// the best instruction set that this processor has.
//
// In arrays, all axes but the last are the batch. Every operand has the batch of the first, so that a partitioner may
// cut it along with the results, or one row for the whole batch; hyper-parameters have one value in their last axis, or
// one a position.
#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace smoothmax {

// XLA's own threads, as an argument of a handler.
struct Pool : ffi::ThreadPool {
  Pool(const ffi::ThreadPool& pool) : ffi::ThreadPool(pool) {}
};

}  // namespace smoothmax

template <>
struct xla::ffi::CtxBinding<smoothmax::Pool> {
  using Ctx = xla::ffi::ThreadPool;
};

namespace smoothmax {

namespace baseline {
extern const Kernels kernels;
}
#ifdef SMOOTHMAX_X86_64_V3
namespace x86_64_v3 {
extern const Kernels kernels;
}
#endif
#ifdef SMOOTHMAX_X86_64_V4
namespace x86_64_v4 {
extern const Kernels kernels;
}
#endif

namespace {

const Kernels& best() {
#if defined(SMOOTHMAX_X86_64_V3) || defined(SMOOTHMAX_X86_64_V4)
  __builtin_cpu_init();
#endif
#ifdef SMOOTHMAX_X86_64_V4
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return x86_64_v4::kernels;
  }
#endif
#ifdef SMOOTHMAX_X86_64_V3
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt")) {
    return x86_64_v3::kernels;
  }
#endif
  return baseline::kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = best();
  return chosen;
}

template <class T>
int64_t lanes() {
  return kernels().vector_bytes / int64_t{sizeof(T)};
}

template <class T>
constexpr ffi::DataType kType = sizeof(T) == 4 ? ffi::DataType::F32 : ffi::DataType::F64;
template <class T>
using In = ffi::Buffer<kType<T>>;
template <class T>
using Out = ffi::Result<ffi::Buffer<kType<T>>>;
using Bytes = ffi::Buffer<ffi::DataType::S8>;
using Positions = ffi::Buffer<ffi::DataType::S32>;

template <class B>
int64_t last(const B& buffer) {
  return buffer.dimensions().back();
}
template <class B>
int64_t rows(const B& buffer) {
  int64_t n = 1;
  const auto shape = buffer.dimensions();
  for (size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
  return n;
}

template <class T>
PerRow<T> per_row(const In<T>& values) {
  return {values.typed_data(), last(values), rows(values) == 1 ? 0 : last(values)};
}

// Solves all rows of a problem, `group` of them at once; `nanoseconds` is about what a score takes.
template <class P>
ffi::Error solve(Pool pool, int64_t rows, double nanoseconds, void (*kernel)(const P&, int64_t, int64_t),
                 const P& problem, int64_t group = 1) {
  if (rows > 0 && problem.d > 0) {
    in_pieces(pool, rows, group, nanoseconds * static_cast<double>(problem.d),
              [&](int64_t begin, int64_t end) { kernel(problem, begin, end); });
  }
  return ffi::Error::Success();
}

template <class T>
ffi::Error threshold(Pool pool, In<T> x, In<T> gamma, In<T> alpha, Out<T> y) {
  const Threshold<T> problem = {x.typed_data(), per_row<T>(gamma), per_row<T>(alpha), y->typed_data(), last(x)};
  return solve(pool, rows(x), 1.5, table<T>(kernels()).threshold, problem);
}

template <class T>
ffi::Error p_norm(Pool pool, In<T> x, In<T> gamma, In<T> p, Out<T> y) {
  const Threshold<T> problem = {x.typed_data(), per_row<T>(gamma), per_row<T>(p), y->typed_data(), last(x)};
  return solve(pool, rows(x), 1.5, table<T>(kernels()).p_norm, problem);
}

template <class T>
ffi::Error capped(Pool pool, In<T> x, In<T> gamma, In<T> alpha, In<T> total, In<T> upper, Out<T> y) {
  const Capped<T> problem = {
      x.typed_data(), per_row<T>(gamma), per_row<T>(alpha), per_row<T>(total), per_row<T>(upper), y->typed_data(),
      last(x)};
  return solve(pool, rows(x), 5, table<T>(kernels()).capped, problem);
}

template <class T>
ffi::Error threshold_product(Pool pool, In<T> y, In<T> v, In<T> alpha, In<T> scale, Out<T> out) {
  const ThresholdProduct<T> problem = {y.typed_data(),    v.typed_data(),    per_row<T>(alpha),
                                       per_row<T>(scale), out->typed_data(), last(y)};
  return solve(pool, rows(y), 1, table<T>(kernels()).threshold_product, problem);
}

template <class T>
ffi::Error p_norm_product(Pool pool, In<T> y, In<T> v, In<T> p, In<T> scale, Out<T> out) {
  const ThresholdProduct<T> problem = {y.typed_data(),    v.typed_data(),    per_row<T>(p),
                                       per_row<T>(scale), out->typed_data(), last(y)};
  return solve(pool, rows(y), 1, table<T>(kernels()).p_norm_product, problem);
}

template <class T>
ffi::Error chain(Pool pool, In<T> x, In<T> up, In<T> down, Out<T> t, ffi::Result<Bytes> jumps) {
  const Chain<T> problem = {x.typed_data(),  per_row<T>(up),      per_row<T>(down),
                            t->typed_data(), jumps->typed_data(), last(x)};
  return solve(pool, rows(x), 10, table<T>(kernels()).chain, problem, lanes<T>());
}

template <class T>
ffi::Error segment_mean(Pool pool, In<T> v, Bytes jumps, In<T> weight, Out<T> mean) {
  const SegmentMean<T> problem = {v.typed_data(), jumps.typed_data(), weight.typed_data(), mean->typed_data(), last(v)};
  return solve(pool, rows(v), 2, table<T>(kernels()).segment_mean, problem, lanes<T>());
}

template <class T>
ffi::Error ranks(Pool pool, In<T> x, In<T> weights, Out<T> t, ffi::Result<Positions> order, ffi::Result<Bytes> ties) {
  const Ranks<T> problem = {x.typed_data(),      per_row<T>(weights), t->typed_data(),
                            order->typed_data(), ties->typed_data(),  last(x)};
  return solve(pool, rows(x), 7, table<T>(kernels()).ranks, problem);
}

template <class T>
ffi::Error sort(Pool pool, In<T> x, Out<T> values, ffi::Result<Positions> rank) {
  const Sort<T> problem = {x.typed_data(), values->typed_data(), rank->typed_data(), last(x)};
  return solve(pool, rows(x), 4, table<T>(kernels()).sort, problem);
}

template <class T>
ffi::Error permutahedron(Pool pool, In<T> x, In<T> gamma, In<T> weights, Out<T> y, ffi::Result<Positions> order,
                         ffi::Result<Bytes> ties) {
  const Permutahedron<T> problem = {x.typed_data(),  per_row<T>(gamma),   per_row<T>(weights),
                                    y->typed_data(), order->typed_data(), ties->typed_data(),
                                    last(x)};
  return solve(pool, rows(x), 7, table<T>(kernels()).permutahedron, problem);
}

template <class T>
ffi::Error group_mean(Pool pool, In<T> v, Positions order, Bytes ties, In<T> weight, Out<T> mean) {
  const GroupMean<T> problem = {v.typed_data(),      order.typed_data(), ties.typed_data(),
                                weight.typed_data(), mean->typed_data(), last(v)};
  return solve(pool, rows(v), 2, table<T>(kernels()).group_mean, problem);
}

}  // namespace
}  // namespace smoothmax

#define SMOOTHMAX_HANDLERS(problem, _)                                                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(smoothmax_##problem##_float32, smoothmax::problem<float>); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(smoothmax_##problem##_float64, smoothmax::problem<double>);

#pragma GCC visibility push(default)
SMOOTHMAX_PROBLEMS(SMOOTHMAX_HANDLERS)

// For `python -m smoothmax` and for the check whether this library suits the jaxlib that loads it.
extern "C" int smoothmax_ffi_major() { return XLA_FFI_API_MAJOR; }
extern "C" int smoothmax_ffi_minor() { return XLA_FFI_API_MINOR; }
extern "C" const char* smoothmax_instruction_set() { return smoothmax::kernels().name; }
#pragma GCC visibility pop
