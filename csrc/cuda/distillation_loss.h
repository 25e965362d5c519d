// Launches of distillation_loss: plain pointers, sizes, strides and a stream. Tensors are checked by who calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernel_attributes.h"
#include "dynabert/element.h"

namespace dynabert::cuda {

// Two rows are held in registers, whole.
inline constexpr int64_t kMaxDistillationLossColumns = 4096;

struct DistillationLoss {
  bool squared_error;           // else soft cross-entropy
  const void* student;          // (num_rows, columns)
  const void* teacher;          // (any, columns)
  const int32_t* rows;          // (num_groups + 1)
  const int32_t* teacher_rows;  // (num_rows) or null: a row's own number
  const int32_t* active;        // (num_groups) or null: every group counts
  int64_t num_rows, num_groups, columns;
  int64_t student_stride, teacher_stride;  // elements from row to row
};

// All need num_rows >= 1 and 1 <= columns <= kMaxDistillationLossColumns, the forward num_groups >= 1 too. They return
// the launch's status and do not synchronise. float64 is refused (cudaErrorInvalidValue).
//
// row_loss: (num_rows), working memory. loss: (num_groups).
cudaError_t distillation_loss_forward(DType dtype, const DistillationLoss& arguments, float* row_loss, float* loss,
                                      cudaStream_t stream);
// dloss: (num_groups). dstudent: (num_rows, columns) contiguous.
cudaError_t distillation_loss_backward(DType dtype, const DistillationLoss& arguments, const float* dloss,
                                       void* dstudent, cudaStream_t stream);

std::vector<KernelHandle> distillation_loss_kernels();

}  // namespace dynabert::cuda
