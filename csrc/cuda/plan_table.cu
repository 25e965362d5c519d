#include "dynabert/plan_table.cuh"

#include "cuda/plan_table.h"

namespace dynabert::cuda {
namespace {

constexpr int kThreads = 256;  // not timed on a card yet

}  // namespace

cudaError_t plan_table(const PlanTable& a, cudaStream_t stream) {
  plan_table_kernel<kThreads><<<1, kThreads, 0, stream>>>(
      {a.seqlens, a.group_sizes, a.heads, a.neurons, a.table, a.cu_seqlens, a.sequences, a.groups, a.layers});
  return cudaGetLastError();
}

std::vector<KernelHandle> plan_table_kernels() {
  return {{"plan_table", reinterpret_cast<const void*>(&plan_table_kernel<kThreads>)}};
}

}  // namespace dynabert::cuda
