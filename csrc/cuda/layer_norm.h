// Launches of add_layer_norm: plain pointers, sizes, strides and a stream. Tensors are checked by who calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernel_attributes.h"
#include "dynabert/element.h"

namespace dynabert::cuda {

// A row is held in registers, whole.
inline constexpr int64_t kMaxLayerNormColumns = 4096;

struct AddLayerNormForward {
  const void* x;         // (rows, columns)
  const void* residual;  // (rows, columns) or null
  const void* weight;    // (columns)
  const void* bias;      // (columns)
  void* y;               // (rows, columns)
  float* mean;           // (rows)
  float* rstd;           // (rows)
  int64_t rows, columns;
  int64_t x_stride, residual_stride, y_stride;  // elements from row to row
  float eps;
};

struct AddLayerNormBackward {
  const void* dy;        // (rows, columns)
  const void* x;         // (rows, columns)
  const void* residual;  // (rows, columns) or null
  const void* weight;    // (columns)
  const float* mean;     // (rows)
  const float* rstd;     // (rows)
  void* dx;              // (rows, columns)
  void* dw;              // (columns)
  void* db;              // (columns)
  float* partials;       // (num_partials, 2, columns), num_partials from add_layer_norm_partials
  int64_t rows, columns;
  int64_t dy_stride, x_stride, residual_stride, dx_stride;
  int num_partials;
};

// Both need rows >= 1 and 1 <= columns <= kMaxLayerNormColumns. They return the launch's status and do not synchronise.
// float64 is refused (cudaErrorInvalidValue).
cudaError_t add_layer_norm_forward(DType dtype, const AddLayerNormForward& arguments, cudaStream_t stream);
cudaError_t add_layer_norm_backward(DType dtype, const AddLayerNormBackward& arguments, cudaStream_t stream);

// How many partial sums the backward pass writes on this device. Depends on nothing else than device and sizes: so the
// order of the additions, and with it every bit of dw and db, does not change from call to call.
cudaError_t add_layer_norm_partials(int64_t rows, int64_t columns, int device, int* num_partials);

std::vector<KernelHandle> layer_norm_kernels();

}  // namespace dynabert::cuda
