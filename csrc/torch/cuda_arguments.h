// Checks of what comes in for a CUDA kernel, beside those of arguments.h.
#pragma once

#include <cuda_runtime.h>

#include "torch/arguments.h"

namespace dynabert::binding {

// `first`: the name of the tensor whose device counts.
inline void check_device(const char* op, const char* name, const Tensor& tensor, const char* first,
                         const Tensor& like) {
  if (!tensor.is_cuda() || tensor.get_device_index() != like.get_device_index()) {
    refuse(op, name, " is not on CUDA device ", like.get_device_index(), ", where ", first, " is; move it there");
  }
}

inline void check_launch_of(const char* op, cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": the launch failed: " + cudaGetErrorString(status));
  }
}

}  // namespace dynabert::binding
