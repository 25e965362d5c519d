// Launches of embed_layer_norm: plain pointers, sizes, strides and a stream. Tensors are checked by who calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernel_attributes.h"
#include "dynabert/element.h"

namespace dynabert::cuda {

// A row is held in registers, whole.
inline constexpr int64_t kMaxEmbeddingColumns = 4096;

struct EmbeddingLookup {
  const int64_t* ids;  // (tokens), or null: row 0 for every token
  const void* table;   // (size, columns)
  int64_t size;        // negative: this lookup takes no part
  int64_t stride;      // elements from row to row
};

struct EmbeddingDropout {
  const int64_t* state;  // seed, offset; null: nothing is dropped
  const int32_t* rows;   // (num_groups + 1), or null: one group
  int num_groups;
  uint32_t stream;  // stream << 12
  uint32_t threshold;
  float scale;
};

struct EmbedLayerNormForward {
  EmbeddingLookup lookups[3];  // word, position, type
  EmbeddingDropout dropout;
  const void* weight;  // (columns)
  const void* bias;    // (columns)
  void* y;             // (tokens, columns) contiguous
  float* mean;         // (tokens)
  float* rstd;         // (tokens)
  int64_t tokens, columns;
  float eps;
};

struct EmbedLayerNormBackward {
  EmbeddingLookup lookups[3];
  EmbeddingDropout dropout;
  const void* dy;      // (tokens, columns)
  const void* weight;  // (columns)
  const float* mean;   // (tokens)
  const float* rstd;   // (tokens)
  float* dh;           // (tokens, columns) contiguous
  void* dw;            // (columns)
  void* db;            // (columns)
  float* partials;     // (num_partials, 2, columns), num_partials from embed_layer_norm_partials
  int64_t tokens, columns;
  int64_t dy_stride;
  int num_partials;
};

struct SumsById {
  const float* rows;     // (tokens, columns) contiguous
  const int64_t* ids;    // (tables, tokens), each ascending
  const int64_t* order;  // (tables, tokens)
  float* partials;       // (tables, sums_by_id_partials(tokens), columns)
  void* out[3];          // (size, columns) contiguous, zeros
  int64_t size[3];
  int64_t left_out;  // an id of table 0 that gets no sum
  int tables;
  int64_t tokens, columns;
};

// All need 1 <= tokens < 2^31 and 1 <= columns <= kMaxEmbeddingColumns. They return the launch's status and do not
// synchronise. float64 is refused (cudaErrorInvalidValue).
cudaError_t embed_layer_norm_forward(DType dtype, const EmbedLayerNormForward& arguments, cudaStream_t stream);
cudaError_t embed_layer_norm_backward(DType dtype, const EmbedLayerNormBackward& arguments, cudaStream_t stream);
cudaError_t sums_by_id(DType dtype, const SumsById& arguments, cudaStream_t stream);

// How many partial sums of dw and db the backward pass writes on this device. Depends on nothing else than device and
// sizes: so the order of the additions does not change from call to call.
cudaError_t embed_layer_norm_partials(int64_t tokens, int64_t columns, int device, int* num_partials);

// How many partial rows sums_by_id keeps for a table.
int64_t sums_by_id_partials(int64_t tokens);

std::vector<KernelHandle> embedding_kernels();

}  // namespace dynabert::cuda
