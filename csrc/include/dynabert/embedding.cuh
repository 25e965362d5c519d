// Embeddings summed and normalised, forward and backward. The formulas stand in
// dynabert_kernels/triton/embed_layer_norm.py.
//
// Forward: a team of threads (a warp up to 1,024 columns, else a block) holds one row in registers: the sum of its
// tables' rows, the mean, the variance about it. Bytes: 3 reads and 1 write of T*C elements; operations: about 10*T*C.
//
// Backward: a fixed number of blocks walk over the rows; a block adds the row up again from the tables, writes the
// gradient of the sum in float32 and holds its sums for dw and db in registers. Bytes: 4 reads of T*C elements, T*C
// floats written. The way from there into the tables is sums_by_id.cuh.
//
// Sums and statistics are float32. A token with an id outside its table reads nothing: its row is NaN.
#pragma once

#include "dynabert/philox.cuh"
#include "dynabert/row.cuh"

namespace dynabert {

inline constexpr int kEmbeddingTables = 3;  // word, position, type

template <class T>
struct EmbeddingTables {
  const int64_t* ids[kEmbeddingTables];  // (tokens), or null: row 0 for every token
  const T* table[kEmbeddingTables];      // (size, columns)
  int64_t size[kEmbeddingTables];        // negative: this table takes no part
  int64_t stride[kEmbeddingTables];      // elements from row to row
};

// h = the sum of the token's rows; false where one of them is not there, with h zero.
template <int kThreads, int kVector, int kPacks, class T>
__device__ __forceinline__ bool embedded_row(float (&h)[kPacks * kVector], const EmbeddingTables<T>& tables,
                                             int64_t token, int columns, int thread) {
  const T* row[kEmbeddingTables];
  bool found = true;
#pragma unroll
  for (int i = 0; i < kEmbeddingTables; ++i) {
    row[i] = nullptr;
    if (tables.size[i] < 0) continue;
    const int64_t id = tables.ids[i] != nullptr ? tables.ids[i][token] : 0;
    if (id >= 0 && id < tables.size[i]) {
      row[i] = tables.table[i] + id * tables.stride[i];
    } else {
      found = false;
    }
  }
#pragma unroll
  for (int i = 0; i < kPacks * kVector; ++i) h[i] = 0.0f;
  if (!found) return false;
#pragma unroll
  for (int i = 0; i < kEmbeddingTables; ++i) {
    if (row[i] != nullptr) add_row<kThreads, kVector, kPacks>(h, row[i], columns, thread);
  }
  return true;
}

template <class T, int kThreads, int kRowsPerBlock, int kVector, int kPacks>
__global__ void __launch_bounds__(kThreads* kRowsPerBlock)
    embed_layer_norm_forward_kernel(EmbeddingTables<T> tables, RowDropout dropout,
                                    const T* __restrict__ weight,  // (columns)
                                    const T* __restrict__ bias,    // (columns)
                                    T* __restrict__ y,             // (tokens, columns) contiguous
                                    float* __restrict__ mean,      // (tokens)
                                    float* __restrict__ rstd,      // (tokens)
                                    int64_t tokens, int columns, float eps) {
  static_assert(kThreads == 32 || kRowsPerBlock == 1, "a team of several warps has the block's barrier to itself");
  constexpr int kValues = kVector * kPacks;
  // One for each sum: to write the second, nobody waits for those who still read the first.
  __shared__ float scratch[2][kThreads / 32];
  const int thread = threadIdx.x % kThreads;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kThreads;
  if (token >= tokens) return;  // whole teams leave, and only where a team needs no barrier

  float h[kValues];
  const bool found = embedded_row<kThreads, kVector, kPacks>(h, tables, token, columns, thread);
  float sum[1] = {0.0f};
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum[0] += h[i];
  team_sum<kThreads>(sum, scratch[0]);
  const float row_mean = found ? sum[0] / static_cast<float>(columns) : nanf("");

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
  drop_row<kThreads, kVector, kPacks>(h, dropout, row_counter(dropout, token), thread);
  store_row<kThreads, kVector, kPacks>(y + token * columns, h, columns, thread);
  if (thread == 0) {
    mean[token] = row_mean;
    rstd[token] = row_rstd;
  }
}

template <class T, int kThreads, int kBlocksPerMultiprocessor, int kVector, int kPacks>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    embed_layer_norm_backward_kernel(EmbeddingTables<T> tables, RowDropout dropout,
                                     const T* __restrict__ dy,        // (tokens, columns)
                                     const T* __restrict__ weight,    // (columns)
                                     const float* __restrict__ mean,  // (tokens)
                                     const float* __restrict__ rstd,  // (tokens)
                                     float* __restrict__ dh,          // (tokens, columns) contiguous
                                     float* __restrict__ partials,    // (gridDim.x, 2, columns): this block's dw and db
                                     int64_t tokens, int columns, int64_t dy_stride) {
  static_assert(kThreads > 32, "one block, one row at a time");
  constexpr int kValues = kVector * kPacks;
  __shared__ float scratch[2][2 * kThreads / 32];  // rows take turns: the one barrier of a row frees the other half
  const int thread = threadIdx.x;

  float w[kValues], dw[kValues], db[kValues];
  load_row<kThreads, kVector, kPacks>(w, weight, columns, thread);
#pragma unroll
  for (int i = 0; i < kValues; ++i) dw[i] = db[i] = 0.0f;

  int turn = 0;
  for (int64_t token = blockIdx.x; token < tokens; token += gridDim.x, turn ^= 1) {
    float gradient[kValues], xhat[kValues];
    load_row<kThreads, kVector, kPacks>(gradient, dy + token * dy_stride, columns, thread);
    embedded_row<kThreads, kVector, kPacks>(xhat, tables, token, columns, thread);
    drop_row<kThreads, kVector, kPacks>(gradient, dropout, row_counter(dropout, token), thread);
    const float row_mean = mean[token], row_rstd = rstd[token];

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
    float* const row = dh + token * columns;
    constexpr int kPart = kVector < 4 ? kVector : 4;  // floats that one instruction stores
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = pack_column<kThreads, kVector>(p, thread);
      if (column >= columns) continue;
#pragma unroll
      for (int part = 0; part < kVector; part += kPart) {
        Pack<float, kPart> pack;
#pragma unroll
        for (int v = 0; v < kPart; ++v) {
          const int i = p * kVector + part + v;
          pack.value[v] = row_rstd * (gradient[i] - mean_g - xhat[i] * mean_gx);
        }
        *reinterpret_cast<Pack<float, kPart>*>(row + column + part) = pack;
      }
    }
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

}  // namespace dynabert
