// PyTorch's stable sort, through its dispatcher: on a GPU its radix sort, on PyTorch's stream, without synchronising.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <utility>

namespace dynabert::binding {

// Values and their places, ascending along the last dimension; equal values keep their order.
inline std::pair<torch::stable::Tensor, torch::stable::Tensor> stable_sort(const torch::stable::Tensor& tensor) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(tensor),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{-1}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<torch::stable::Tensor>(stack[0]),
          torch::stable::detail::to<torch::stable::Tensor>(stack[1])};
}

}  // namespace dynabert::binding
