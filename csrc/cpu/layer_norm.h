// Row kernels of LayerNorm: pointers, sizes and strides in elements. Rows are independent; callers share them out.
#pragma once

#include "dynabert/element.h"

namespace dynabert::cpu {

// y = (h - mean) * rstd * weight + bias with h = residual + factor * (x + x_bias), factor from dropout.
struct LayerNormForward {
  DType dtype;
  const void* x;         // (rows, columns); may be y
  const void* x_bias;    // (columns) or null
  const void* residual;  // (rows, columns) or null
  const void* weight;    // (columns)
  const void* bias;      // (columns)
  void* y;               // (rows, columns)
  void* hidden;          // (rows, columns), receives h; or null; may be x
  void* mean;            // (rows) float32, float64 for float64; or null
  void* rstd;
  int64_t columns;
  int64_t x_stride, residual_stride, y_stride, hidden_stride;
  double eps;
  Dropout dropout;
  int64_t first_row_in_group;  // what row 0 of these pointers counts as for dropout
};

void layer_norm_forward(const LayerNormForward& arguments, int64_t begin, int64_t end);

struct LayerNormBackward {
  DType dtype;
  const void* dy;        // (rows, columns)
  const void* x;         // (rows, columns)
  const void* residual;  // (rows, columns) or null
  const void* weight;    // (columns)
  const void* mean;      // (rows)
  const void* rstd;      // (rows)
  void* dx;              // (rows, columns)
  void* dropped;         // (rows, columns), receives dx times the dropout factor; or null
  void* partials;        // (chunks, sums, columns) of the wide type: dw and db of each chunk of rows, and of what was
                         // added to the residual, if that is wanted, the column sums
  int64_t sums;          // 2 or 3
  int64_t rows, columns, rows_per_chunk;
  int64_t dy_stride, x_stride, residual_stride, dx_stride, dropped_stride;
  Dropout dropout;  // row 0 of these pointers is the first of its group
};

// Works on chunks begin to end - 1 of rows_per_chunk rows.
void layer_norm_backward(const LayerNormBackward& arguments, int64_t begin, int64_t end);

// out[i]: sum i of all chunks in their order, so the result does not depend on the number of threads.
void layer_norm_sum_partials(DType dtype, const void* partials, int64_t chunks, int64_t sums, int64_t columns,
                             void* const* out);

}  // namespace dynabert::cpu
