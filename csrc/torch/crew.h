// Launches to torch's threads: each a parallel region of its own, or many of them in one.
#pragma once

#include <torch/csrc/stable/ops.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/task_costs.h"

namespace dynabert::binding {

// What the threads of a region share. A launch is cut into one run a thread. A thread takes its own run first, then any
// that nobody has taken yet: so a launch ends whatever number of the threads are really there, and a thread that
// another process holds back delays nobody but itself. Then all wait until the runs are done.
class CrewState {
 public:
  explicit CrewState(int64_t threads)
      : threads(threads), taken_(std::make_unique<Taken[]>(static_cast<size_t>(threads))) {}

  const int64_t threads;

  // Whether run `index` of launch `number` is the caller's.
  bool take(int64_t index, int64_t number) {
    std::atomic<int64_t>& taken = taken_[static_cast<size_t>(index)].launches;
    int64_t expected = number;
    return taken.load(std::memory_order_relaxed) == number &&
           taken.compare_exchange_strong(expected, number + 1, std::memory_order_relaxed);
  }

  void done() { runs_done_.fetch_add(1, std::memory_order_acq_rel); }

  // Until all runs of this many launches are done; false where a thread has failed.
  bool wait(int64_t launches) const {
    for (int64_t turn = 0; runs_done_.load(std::memory_order_acquire) < launches * threads; ++turn) {
      if (failed_.load(std::memory_order_relaxed)) return false;
      if (turn < kTurns) {
#if defined(__x86_64__)
        _mm_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
    return !failed_.load(std::memory_order_relaxed);
  }

  // Keeps the first error, which ends the region.
  void fail(std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = error;
    failed_.store(true);
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int64_t kTurns = 4000;  // of about 20 ns: a launch of a short text takes a few microseconds

  struct alignas(64) Taken {
    std::atomic<int64_t> launches{0};  // how many launches' runs of this index somebody has taken
  };
  std::unique_ptr<Taken[]> taken_;
  alignas(64) std::atomic<int64_t> runs_done_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

// How a function that makes launches reaches the threads. Inside a region every thread calls the function, with the
// same arguments, and `share` divides the work; outside it, one thread does, and each `share` is a region.
class Crew {
 public:
  Crew() : Crew(nullptr, 0) {}
  Crew(CrewState* state, int64_t index)
      : state_(state),
        index_(index),
        threads_(state ? state->threads : static_cast<int64_t>(torch::stable::get_num_threads())) {}

  bool inside() const { return state_ != nullptr; }
  int64_t threads() const { return threads_; }

  // run(begin, end) for parts of 0 to count - 1, none of them of less than `grain` unless it is all.
  template <class Run>
  void share(int64_t count, int64_t grain, const Run& run) {
    if (count <= 0) return;
    if (!inside()) {
      torch::stable::parallel_for(0, count, grain, run);
      return;
    }
    const int64_t parts = std::clamp<int64_t>(count / std::max<int64_t>(1, grain), 1, threads_);
    together([&](int64_t part) {
      if (part < parts) run(count * part / parts, count * (part + 1) / parts);
    });
  }

  // run(begin, end) for runs of the launch's tasks, one run a thread, of nearly equal cost. `equal`: all tasks cost the
  // same, and numbers of tasks will do. What is computed does not depend on the cut.
  template <class Launch, class Run>
  void share_tasks(const Launch& launch, int64_t tasks, bool equal, const Run& run) {
    if (equal || threads_ == 1 || tasks < 2) return share(tasks, 1, run);
    const std::vector<int64_t> borders = cpu::fair_borders(cpu::task_costs(launch), threads_);
    const auto part = [&](int64_t index) {
      const int64_t begin = borders[static_cast<size_t>(index)], end = borders[static_cast<size_t>(index + 1)];
      if (begin < end) run(begin, end);
    };
    if (inside()) return together(part);
    torch::stable::parallel_for(0, threads_, 1, [&](int64_t first, int64_t last) {
      for (int64_t index = first; index < last; ++index) part(index);
    });
  }

 private:
  // Stops this thread where another has failed; who began the region throws what that one threw.
  struct Stopped : std::exception {};

  template <class Part>
  void together(const Part& part) {
    for (int64_t i = 0; i < threads_; ++i) {
      const int64_t index = (index_ + i) % threads_;
      if (!state_->take(index, launches_)) continue;
      part(index);
      state_->done();
    }
    if (!state_->wait(++launches_)) throw Stopped();
  }

  CrewState* state_;
  int64_t index_, threads_;
  int64_t launches_ = 0;
};

// body(crew) on every thread in one region where `together` says so, else once. Between its launches every thread does
// the same, so what body writes beside them must be its own.
template <class Body>
void with_crew(bool together, const Body& body) {
  Crew alone;
  if (!together || alone.threads() == 1) return body(alone);
  CrewState state(alone.threads());
  torch::stable::parallel_for(0, state.threads, 1, [&](int64_t first, int64_t) {
    try {
      Crew crew(&state, first);
      body(crew);
    } catch (...) {
      state.fail(std::current_exception());
    }
  });
  state.rethrow();
}

}  // namespace dynabert::binding
