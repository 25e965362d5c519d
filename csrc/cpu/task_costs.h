// What the tasks of a launch over spans of different widths cost, so that threads can share them fairly: with one width
// equal numbers of tasks are equal work, but a panel that only the wide rows reach is less work than one that all do,
// and a long text's attention is more than a short one's.
#pragma once

#include <vector>

#include "cpu/attention.h"
#include "cpu/gemm.h"
#include "cpu/int8_gemm.h"
#include "cpu/weight_gradient.h"

namespace dynabert::cpu {

// One number a task, in the order of the tasks of the plan_ function that was called before. Multiplications, in round
// terms: only their ratios matter.
std::vector<int64_t> task_costs(const SpanGemm& gemm);
std::vector<int64_t> task_costs(const Int8Gemm& gemm);
std::vector<int64_t> task_costs(const WeightGemm& gemm);
std::vector<int64_t> task_costs(const AttentionForward& attention);
std::vector<int64_t> task_costs(const AttentionBackward& attention);

// Cuts the tasks into `parts` runs of nearly equal cost, in their order: run i is border i to border i + 1 - 1. A run
// may be empty.
std::vector<int64_t> fair_borders(const std::vector<int64_t>& costs, int64_t parts);

}  // namespace dynabert::cpu
