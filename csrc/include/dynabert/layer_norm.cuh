// LayerNorm of a sum, forward and backward. The formulas stand in dynabert_kernels/triton/add_layer_norm.py.
//
// Forward: a team of threads (a warp up to 1,024 columns, else a block) holds one row in registers: the mean first,
// then the variance about it. Bytes: 3*T*C elements; operations: about 8*T*C.
//
// Backward: a fixed number of blocks walk over the rows; a block holds its sums for dw and db in registers and writes
// them as partials, which a second kernel adds in a fixed order: deterministic for one grid. Bytes: 4*T*C elements and
// 2*C floats per block; operations: about 14*T*C.
//
// Sums and statistics are float32; x + residual is never rounded to T. Rows may have any stride, columns lie side by
// side.
#pragma once

#include "dynabert/row.cuh"

namespace dynabert {

template <class T, int kThreads, int kRowsPerBlock, int kVector, int kPacks>
__global__ void __launch_bounds__(kThreads* kRowsPerBlock)
    add_layer_norm_forward_kernel(const T* __restrict__ x,         // (rows, columns)
                                  const T* __restrict__ residual,  // (rows, columns) or null
                                  const T* __restrict__ weight,    // (columns)
                                  const T* __restrict__ bias,      // (columns)
                                  T* __restrict__ y,               // (rows, columns)
                                  float* __restrict__ mean,        // (rows)
                                  float* __restrict__ rstd,        // (rows)
                                  int64_t rows, int columns, int64_t x_stride, int64_t residual_stride,
                                  int64_t y_stride, float eps) {
  static_assert(kThreads == 32 || kRowsPerBlock == 1, "a team of several warps has the block's barrier to itself");
  constexpr int kValues = kVector * kPacks;
  // One for each sum: to write the second, nobody waits for those who still read the first.
  __shared__ float scratch[2][kThreads / 32];
  const int thread = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kThreads;
  if (row >= rows) return;  // whole teams leave, and only where a team needs no barrier

  float h[kValues];
  load_row<kThreads, kVector, kPacks>(h, x + row * x_stride, columns, thread);
  if (residual != nullptr) add_row<kThreads, kVector, kPacks>(h, residual + row * residual_stride, columns, thread);

  float sum[1] = {0.0f};
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum[0] += h[i];
  team_sum<kThreads>(sum, scratch[0]);
  const float row_mean = sum[0] / static_cast<float>(columns);

  float square[1] = {0.0f};
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    // Past the last column h is zero, so centring makes it -mean: it must not reach the variance.
    const bool inside = pack_column<kThreads, kVector>(p, thread) < columns;
#pragma unroll
    for (int i = p * kVector; i < (p + 1) * kVector; ++i) {
      h[i] -= row_mean;
      square[0] += inside ? h[i] * h[i] : 0.0f;
    }
  }
  team_sum<kThreads>(square, scratch[1]);
  const float row_rstd = rsqrtf(square[0] / static_cast<float>(columns) + eps);

  float parameter[kValues];
  load_row<kThreads, kVector, kPacks>(parameter, weight, columns, thread);
#pragma unroll
  for (int i = 0; i < kValues; ++i) h[i] *= row_rstd * parameter[i];
  add_row<kThreads, kVector, kPacks>(h, bias, columns, thread);
  store_row<kThreads, kVector, kPacks>(y + row * y_stride, h, columns, thread);
  if (thread == 0) {
    mean[row] = row_mean;
    rstd[row] = row_rstd;
  }
}

template <class T, int kThreads, int kBlocksPerMultiprocessor, int kVector, int kPacks>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    add_layer_norm_backward_kernel(const T* __restrict__ dy,        // (rows, columns)
                                   const T* __restrict__ x,         // (rows, columns)
                                   const T* __restrict__ residual,  // (rows, columns) or null
                                   const T* __restrict__ weight,    // (columns)
                                   const float* __restrict__ mean,  // (rows)
                                   const float* __restrict__ rstd,  // (rows)
                                   T* __restrict__ dx,              // (rows, columns)
                                   float* __restrict__ partials,    // (gridDim.x, 2, columns): this block's dw and db
                                   int64_t rows, int columns, int64_t dy_stride, int64_t x_stride,
                                   int64_t residual_stride, int64_t dx_stride) {
  static_assert(kThreads > 32, "one block, one row at a time");
  constexpr int kValues = kVector * kPacks;
  __shared__ float scratch[2][2 * kThreads / 32];  // rows take turns: the one barrier of a row frees the other half
  const int thread = threadIdx.x;

  float w[kValues], dw[kValues], db[kValues];
  load_row<kThreads, kVector, kPacks>(w, weight, columns, thread);
#pragma unroll
  for (int i = 0; i < kValues; ++i) dw[i] = db[i] = 0.0f;

  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    float gradient[kValues], xhat[kValues];
    load_row<kThreads, kVector, kPacks>(gradient, dy + row * dy_stride, columns, thread);
    load_row<kThreads, kVector, kPacks>(xhat, x + row * x_stride, columns, thread);
    if (residual != nullptr)
      add_row<kThreads, kVector, kPacks>(xhat, residual + row * residual_stride, columns, thread);
    const float row_mean = mean[row], row_rstd = rstd[row];

    // Past the last column the gradient is zero, and with it every product below.
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      xhat[i] = (xhat[i] - row_mean) * row_rstd;
      dw[i] += gradient[i] * xhat[i];
      db[i] += gradient[i];
      gradient[i] *= w[i];
      sums[0] += gradient[i];
      sums[1] += gradient[i] * xhat[i];
    }
    team_sum<kThreads>(sums, scratch[turn]);
    const float mean_g = sums[0] / static_cast<float>(columns), mean_gx = sums[1] / static_cast<float>(columns);
#pragma unroll
    for (int i = 0; i < kValues; ++i) gradient[i] = row_rstd * (gradient[i] - mean_g - xhat[i] * mean_gx);
    store_row<kThreads, kVector, kPacks>(dx + row * dx_stride, gradient, columns, thread);
  }

  float* const block_partials = partials + static_cast<int64_t>(blockIdx.x) * 2 * columns;
  // Scalar stores: 2 * columns need not be a multiple of the pack of floats.
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = pack_column<kThreads, kVector>(p, thread);
    if (column < columns) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        block_partials[column + i] = dw[p * kVector + i];
        block_partials[columns + column + i] = db[p * kVector + i];
      }
    }
  }
}

// out[which][c] = sum over p of partials[p][which][c], which = blockIdx.y; 32 columns a block, kLanes threads a column.
template <class T, int kLanes>
__global__ void __launch_bounds__(32 * kLanes)
    add_layer_norm_sum_partials_kernel(const float* __restrict__ partials,  // (num_partials, 2, columns)
                                       T* __restrict__ dw,                  // (columns)
                                       T* __restrict__ db,                  // (columns)
                                       int num_partials, int columns) {
  __shared__ float sums[kLanes][32];
  const int lane = threadIdx.x / 32, offset = threadIdx.x % 32;
  const int column = blockIdx.x * 32 + offset;
  float sum = 0.0f;
  if (column < columns) {
    const float* first = partials + static_cast<int64_t>(blockIdx.y) * columns + column;
    for (int p = lane; p < num_partials; p += kLanes) sum += first[static_cast<int64_t>(p) * 2 * columns];
  }
  sums[lane][offset] = sum;
  __syncthreads();
  if (lane == 0 && column < columns) {
    float total = 0.0f;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) total += sums[l][offset];
    (blockIdx.y == 0 ? dw : db)[column] = from_float<T>(total);
  }
}

}  // namespace dynabert
