// The kernels for one instruction set: compiled once for each, with SMOOTHMAX_TARGET as its name.
#include "kernels.h"

#include "capped.h"
#include "chain.h"
#include "permutahedron.h"
#include "ranks.h"
#include "segments.h"
#include "simplex.h"

#define SMOOTHMAX_STRING(name) #name
#define SMOOTHMAX_NAME(name) SMOOTHMAX_STRING(name)

namespace smoothmax::SMOOTHMAX_TARGET {

template <class T>
constexpr Table<T> table_of() {
#define SMOOTHMAX_ENTRY(name, Problem) name<T>,
  return {SMOOTHMAX_PROBLEMS(SMOOTHMAX_ENTRY)};
#undef SMOOTHMAX_ENTRY
}

extern const Kernels kernels;
const Kernels kernels = {SMOOTHMAX_NAME(SMOOTHMAX_TARGET), SMOOTHMAX_VECTOR_BYTES, table_of<float>(),
                         table_of<double>()};

}  // namespace smoothmax::SMOOTHMAX_TARGET
