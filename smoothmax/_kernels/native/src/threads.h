// Rows, cut into pieces for the threads of XLA's own pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

namespace smoothmax {

// Calls solve(begin, end) for pieces that make up [0, rows), each of whole groups of rows but the last. Small work is
// done at once, by the caller.
//
// A handler that waited for tasks that it scheduled could wait forever: eight virtual devices share one pool, and all
// its threads may be handlers that wait. So the caller takes pieces too, until none is left, and then waits only for
// the pieces that somebody has begun. A task that comes too late finds no piece, and touches nothing but the state it
// shares.
template <class Pool, class Solve>
void in_pieces(Pool& pool, int64_t rows, int64_t group, double nanoseconds_a_row, const Solve& solve) {
  constexpr double kWorthwhile = 20e3;   // nanoseconds; to wake a thread takes a few thousand
  constexpr int64_t kPiecesAThread = 4;  // threads need not begin together, nor rows take the same time
  const double work = nanoseconds_a_row * static_cast<double>(rows);
  const int64_t threads = work < 2 * kWorthwhile ? 1 : std::max<int64_t>(pool.num_threads(), 1);
  const int64_t most = static_cast<int64_t>(work / kWorthwhile), groups = (rows + group - 1) / group,
                pieces = std::min({groups, most, threads * kPiecesAThread});
  if (threads == 1 || pieces < 2) return solve(int64_t{0}, rows);

  struct State {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable changed;
    int64_t done = 0;
  };
  auto state = std::make_shared<State>();
  const Solve* body = &solve;  // lives until all pieces are done
  const auto work_on = [state, body, rows, group, groups, pieces] {
    for (int64_t piece; (piece = state->next.fetch_add(1)) < pieces;) {
      (*body)(groups* piece / pieces * group, std::min(groups * (piece + 1) / pieces * group, rows));
      std::lock_guard<std::mutex> lock(state->mutex);
      if (++state->done == pieces) state->changed.notify_all();
    }
  };
  for (int64_t i = 1; i < std::min(threads, pieces); ++i) pool.Schedule([work_on] { work_on(); });
  work_on();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->changed.wait(lock, [&] { return state->done == pieces; });
}

}  // namespace smoothmax
