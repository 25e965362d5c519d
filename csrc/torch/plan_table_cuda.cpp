// plan_table on a CUDA device: check, allocate, guard the device, launch on PyTorch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "cuda/plan_table.h"
#include "torch/arguments.h"
#include "torch/cuda_stream.h"

namespace dynabert::binding {
namespace {

const int32_t* numbers_of(const char* op, const char* name, const Tensor& tensor, const Tensor& seqlens) {
  if (!tensor.is_cuda() || tensor.get_device_index() != seqlens.get_device_index()) {
    refuse(op, name, " is not on CUDA device ", seqlens.get_device_index(), ", where seqlens is; move it there");
  }
  if (tensor.scalar_type() != ScalarType::Int) {
    refuse(op, name, " is ", torch::headeronly::toString(tensor.scalar_type()), "; allowed: int32");
  }
  if (!tensor.is_contiguous()) refuse(op, name, " is not contiguous; pass it contiguous");
  return static_cast<const int32_t*>(tensor.const_data_ptr());
}

std::tuple<Tensor, Tensor> plan_table(const Tensor& seqlens, const Tensor& group_sizes, const Tensor& heads,
                                      const Tensor& neurons) {
  const char* op = "plan_table";
  check_shape(op, "seqlens", seqlens, {-1}, "(B,)");
  check_shape(op, "group_sizes", group_sizes, {-1}, "(G,)");
  const int64_t sequences = seqlens.size(0), groups = group_sizes.size(0);
  if (groups == 0) refuse(op, "no group given; give at least one");
  check_shape(op, "heads", heads, {groups, -1}, "(G, L)");
  const int64_t layers = heads.size(1), numbers = groups + 1 + 2 * groups * layers;
  check_shape(op, "neurons", neurons, {groups, layers}, "(G, L)");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1;
  if (sequences > kMost || numbers > kMost) refuse(op, "the plan has more than ", kMost, " numbers; split the batch");
  const torch::stable::accelerator::DeviceGuard guard(seqlens.get_device_index());
  Tensor table = torch::stable::new_empty(seqlens, {numbers});
  Tensor cu_seqlens = torch::stable::new_empty(seqlens, {sequences + 1});
  cuda::PlanTable a = {};
  a.seqlens = numbers_of(op, "seqlens", seqlens, seqlens);
  a.group_sizes = numbers_of(op, "group_sizes", group_sizes, seqlens);
  a.heads = numbers_of(op, "heads", heads, seqlens);
  a.neurons = numbers_of(op, "neurons", neurons, seqlens);
  a.table = static_cast<int32_t*>(table.mutable_data_ptr());
  a.cu_seqlens = static_cast<int32_t*>(cu_seqlens.mutable_data_ptr());
  a.sequences = static_cast<int>(sequences);
  a.groups = static_cast<int>(groups);
  a.layers = static_cast<int>(layers);
  const cudaError_t status = cuda::plan_table(a, current_stream(seqlens.get_device_index()));
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": the launch failed: " + cudaGetErrorString(status));
  }
  return {table, cu_seqlens};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cuda, CUDA, m) { m.impl("plan_table", TORCH_BOX(&dynabert::binding::plan_table)); }
