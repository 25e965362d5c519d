// A plan's table and its sequences' borders. The layout stands in dynabert_kernels/layout/plan.py.
//
// One block does it all: a few thousand integers, so that what counts is one launch and no way back to the host. Sums
// over sequences: each thread adds up a run of them, the threads' sums are added through shared memory, then each
// thread walks its run again. Integers: the same in any order.
#pragma once

#ifndef DYNABERT_HOST_SHIM
#include <cuda_runtime.h>
#endif

#include <cstdint>

namespace dynabert {

struct PlanNumbers {
  const int32_t* seqlens;      // (sequences)
  const int32_t* group_sizes;  // (groups)
  const int32_t* heads;        // (groups, layers)
  const int32_t* neurons;      // (groups, layers)
  int32_t* table;              // (groups + 1 + 2 * groups * layers)
  int32_t* cu_seqlens;         // (sequences + 1)
  int sequences, groups, layers;
};

// sums[0] = 0, sums[i + 1] = numbers[0] + ... + numbers[i]. `scratch` holds kThreads numbers and is free again after
// the barrier that follows; sums[1] and on are seen by all threads after it.
template <int kThreads>
__device__ __forceinline__ void running_sums(const int32_t* numbers, int count, int32_t* sums, int32_t* scratch) {
  const int thread = static_cast<int>(threadIdx.x), each = (count + kThreads - 1) / kThreads;
  const int begin = thread * each < count ? thread * each : count;
  const int end = begin + each < count ? begin + each : count;
  int32_t total = 0;
  for (int i = begin; i < end; ++i) total += numbers[i];
  scratch[thread] = total;
  __syncthreads();
  int32_t before = 0;
  for (int t = 0; t < thread; ++t) before += scratch[t];
  if (thread == 0) sums[0] = 0;
  for (int i = begin; i < end; ++i) {
    before += numbers[i];
    sums[i + 1] = before;
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) plan_table_kernel(PlanNumbers plan) {
  __shared__ int32_t scratch[2][kThreads];
  const int thread = static_cast<int>(threadIdx.x), groups = plan.groups;
  running_sums<kThreads>(plan.seqlens, plan.sequences, plan.cu_seqlens, scratch[0]);
  // The borders' own place holds how many sequences lie before each group, until the borders are known.
  running_sums<kThreads>(plan.group_sizes, groups, plan.table, scratch[1]);
  __syncthreads();
  for (int g = thread; g <= groups; g += kThreads) {
    // Whatever the sizes say, nothing is read outside the borders.
    const int32_t owned = plan.table[g] < 0 ? 0 : plan.table[g] < plan.sequences ? plan.table[g] : plan.sequences;
    plan.table[g] = plan.cu_seqlens[owned];
  }
  int32_t* const counts = plan.table + groups + 1;
  const int64_t cells = static_cast<int64_t>(groups) * plan.layers;
  for (int64_t i = thread; i < cells; i += kThreads) {
    const int64_t group = i / plan.layers, layer = i % plan.layers;
    counts[layer * 2 * groups + group] = plan.heads[i];
    counts[layer * 2 * groups + groups + group] = plan.neurons[i];
  }
}

}  // namespace dynabert
