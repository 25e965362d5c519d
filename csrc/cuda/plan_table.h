// Launch of plan_table: plain pointers, sizes and a stream. Tensors are checked by who calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernel_attributes.h"

namespace dynabert::cuda {

struct PlanTable {
  const int32_t* seqlens;      // (sequences)
  const int32_t* group_sizes;  // (groups)
  const int32_t* heads;        // (groups, layers) contiguous
  const int32_t* neurons;      // (groups, layers) contiguous
  int32_t* table;              // (groups + 1 + 2 * groups * layers)
  int32_t* cu_seqlens;         // (sequences + 1)
  int sequences, groups, layers;
};

// Returns the launch's status and does not synchronise.
cudaError_t plan_table(const PlanTable& arguments, cudaStream_t stream);

std::vector<KernelHandle> plan_table_kernels();

}  // namespace dynabert::cuda
