// Tasks of a launch to torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cpu/task_costs.h"

namespace dynabert::binding {

// run(begin, end) for runs of the launch's tasks, one run a thread, of nearly equal cost. `equal`: all tasks cost the
// same, and numbers of tasks will do. What is computed does not depend on the cut.
template <class Launch, class Run>
void share_tasks(const Launch& launch, int64_t tasks, bool equal, const Run& run) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  if (equal || threads == 1 || tasks < 2) {
    torch::stable::parallel_for(0, tasks, 1, run);
    return;
  }
  const std::vector<int64_t> borders = cpu::fair_borders(cpu::task_costs(launch), threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = borders[static_cast<size_t>(first)], end = borders[static_cast<size_t>(last)];
    if (begin < end) run(begin, end);
  });
}

}  // namespace dynabert::binding
