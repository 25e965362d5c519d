#include "cuda/embedding.h"

#include <algorithm>
#include <initializer_list>
#include <string>

#include "dynabert/embedding.cuh"
#include "dynabert/layer_norm.cuh"
#include "dynabert/sums_by_id.cuh"

namespace dynabert::cuda {
namespace {

// As for add_layer_norm, and like there not timed on a card yet: chosen by registers (no spills on sm_80 and sm_90a)
// and by bytes in flight.
// Up to 1024 columns a warp holds a row, 32 elements a thread, and four rows share a block. Without packs every element
// draws its own counters, which spills: then a block holds the row, 8 elements a thread. Up to 4096 columns a block
// does.
constexpr int kNarrowColumns = 1024;
template <int kVector>
constexpr int kNarrowThreads = kVector == 1 ? 128 : 32;
template <int kVector>
constexpr int kNarrowRowsPerBlock = kVector == 1 ? 1 : 4;
template <int kVector>
constexpr int kNarrowValues = kNarrowColumns / kNarrowThreads<kVector>;
constexpr int kWideThreads = 128, kWideValues = 32;
constexpr int kBackwardValues = 8;
// Blocks per multiprocessor are the grid and the register bound both.
constexpr int kBackwardNarrowThreads = 128, kBackwardNarrowBlocks = 4;  // up to 1024 columns
constexpr int kBackwardWideThreads = 512, kBackwardWideBlocks = 1;      // up to 4096 columns
constexpr int kSumLanes = 16;
constexpr int kChunk = 32;         // sorted places; a partial for 32 rows adds 3 % to the traffic
constexpr int kPieceThreads = 96;  // 4 columns each: MiniLM in one turn, BERT-base in two
constexpr int kPieceVector = 4;    // floats of one 16-byte load
constexpr int kJoinLanes = 8;

static_assert(kWideThreads * kWideValues == kMaxEmbeddingColumns);
static_assert(kBackwardWideThreads * kBackwardValues == kMaxEmbeddingColumns);

bool backward_is_narrow(int64_t columns) { return columns <= kBackwardNarrowThreads * kBackwardValues; }

template <class T, int kVector>
constexpr auto* kForwardNarrow =
    &embed_layer_norm_forward_kernel<T, kNarrowThreads<kVector>, kNarrowRowsPerBlock<kVector>, kVector,
                                     kNarrowValues<kVector> / kVector>;
template <class T, int kVector>
constexpr auto* kForwardWide = &embed_layer_norm_forward_kernel<T, kWideThreads, 1, kVector, kWideValues / kVector>;
template <class T, int kVector>
constexpr auto* kBackwardNarrow = &embed_layer_norm_backward_kernel<T, kBackwardNarrowThreads, kBackwardNarrowBlocks,
                                                                    kVector, kBackwardValues / kVector>;
template <class T, int kVector>
constexpr auto* kBackwardWide =
    &embed_layer_norm_backward_kernel<T, kBackwardWideThreads, kBackwardWideBlocks, kVector, kBackwardValues / kVector>;

// Whether packs of `elements` can be used: every row begins at a multiple of the pack's bytes and ends with a whole
// one.
template <class T>
bool packs_fit(int64_t columns, std::initializer_list<const void*> pointers, std::initializer_list<int64_t> strides,
               int elements) {
  const auto off = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * elements) != 0; };
  const auto odd = [&](int64_t count) { return count % elements != 0; };
  return !odd(columns) && std::none_of(pointers.begin(), pointers.end(), off) &&
         std::none_of(strides.begin(), strides.end(), odd);
}

template <class T>
EmbeddingTables<T> tables_of(const EmbeddingLookup (&lookups)[3]) {
  EmbeddingTables<T> tables;
  for (int i = 0; i < kEmbeddingTables; ++i) {
    tables.ids[i] = lookups[i].ids;
    tables.table[i] = static_cast<const T*>(lookups[i].table);
    tables.size[i] = lookups[i].size;
    tables.stride[i] = lookups[i].stride;
  }
  return tables;
}

RowDropout dropout_of(const EmbeddingDropout& d) {
  return {d.state, d.rows, d.num_groups, d.stream, d.threshold, d.scale};
}

template <class T>
bool tables_fit(const EmbeddingLookup (&lookups)[3], int64_t columns) {
  return std::all_of(std::begin(lookups), std::end(lookups), [&](const EmbeddingLookup& one) {
    return one.size < 0 || packs_fit<T>(columns, {one.table}, {one.stride}, kWidestVector<T>);
  });
}

template <class T, int kVector>
cudaError_t forward(const EmbedLayerNormForward& a, cudaStream_t stream) {
  const auto launch = [&](auto kernel, int threads, int rows_per_block) {
    const int64_t blocks = (a.tokens + rows_per_block - 1) / rows_per_block;
    if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(blocks), threads * rows_per_block, 0, stream>>>(
        tables_of<T>(a.lookups), dropout_of(a.dropout), static_cast<const T*>(a.weight), static_cast<const T*>(a.bias),
        static_cast<T*>(a.y), a.mean, a.rstd, a.tokens, static_cast<int>(a.columns), a.eps);
    return cudaGetLastError();
  };
  return a.columns <= kNarrowColumns
             ? launch(kForwardNarrow<T, kVector>, kNarrowThreads<kVector>, kNarrowRowsPerBlock<kVector>)
             : launch(kForwardWide<T, kVector>, kWideThreads, 1);
}

template <class T, int kVector>
cudaError_t backward(const EmbedLayerNormBackward& a, cudaStream_t stream) {
  const auto launch = [&](auto kernel, int threads) {
    kernel<<<a.num_partials, threads, 0, stream>>>(
        tables_of<T>(a.lookups), dropout_of(a.dropout), static_cast<const T*>(a.dy), static_cast<const T*>(a.weight),
        a.mean, a.rstd, a.dh, a.partials, a.tokens, static_cast<int>(a.columns), a.dy_stride);
    return cudaGetLastError();
  };
  const cudaError_t status = backward_is_narrow(a.columns) ? launch(kBackwardNarrow<T, kVector>, kBackwardNarrowThreads)
                                                           : launch(kBackwardWide<T, kVector>, kBackwardWideThreads);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>((a.columns + 31) / 32), 2);
  add_layer_norm_sum_partials_kernel<T, kSumLanes><<<grid, 32 * kSumLanes, 0, stream>>>(
      a.partials, static_cast<T*>(a.dw), static_cast<T*>(a.db), a.num_partials, static_cast<int>(a.columns));
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_of(const EmbedLayerNormForward& a, cudaStream_t stream) {
  const bool packs =
      tables_fit<T>(a.lookups, a.columns) && packs_fit<T>(a.columns, {a.weight, a.bias, a.y}, {}, kWidestVector<T>);
  return packs ? forward<T, kWidestVector<T>>(a, stream) : forward<T, 1>(a, stream);
}

template <class T>
cudaError_t backward_of(const EmbedLayerNormBackward& a, cudaStream_t stream) {
  const bool packs = tables_fit<T>(a.lookups, a.columns) &&
                     packs_fit<T>(a.columns, {a.dy, a.weight}, {a.dy_stride}, kWidestVector<T>) &&
                     packs_fit<float>(a.columns, {a.dh}, {}, kPieceVector);
  return packs ? backward<T, kWidestVector<T>>(a, stream) : backward<T, 1>(a, stream);
}

template <class T>
cudaError_t sums_of(const SumsById& a, cudaStream_t stream) {
  if (a.tokens > 0x7fffffff) return cudaErrorInvalidConfiguration;
  SumOutputs<T> outputs = {};
  bool packs = packs_fit<float>(a.columns, {a.rows, a.partials}, {}, kPieceVector);
  for (int i = 0; i < a.tables; ++i) {
    outputs.out[i] = static_cast<T*>(a.out[i]);
    outputs.size[i] = a.size[i];
    packs = packs && packs_fit<T>(a.columns, {a.out[i]}, {}, kPieceVector);
  }
  outputs.left_out = a.left_out;
  const int tokens = static_cast<int>(a.tokens), columns = static_cast<int>(a.columns);
  const dim3 places(static_cast<unsigned>(tokens), static_cast<unsigned>(a.tables));
  if (packs) {
    sum_pieces_kernel<T, kPieceThreads, kChunk, kPieceVector>
        <<<places, kPieceThreads, 0, stream>>>(a.rows, a.ids, a.order, a.partials, outputs, tokens, columns);
  } else {
    sum_pieces_kernel<T, kPieceThreads, kChunk, 1>
        <<<places, kPieceThreads, 0, stream>>>(a.rows, a.ids, a.order, a.partials, outputs, tokens, columns);
  }
  const cudaError_t status = cudaGetLastError();
  const int chunks = (tokens + kChunk - 1) / kChunk;
  if (status != cudaSuccess || chunks == 1) return status;
  const dim3 joins(static_cast<unsigned>(chunks - 1), static_cast<unsigned>((columns + 31) / 32),
                   static_cast<unsigned>(a.tables));
  join_pieces_kernel<T, kChunk, kJoinLanes>
      <<<joins, 32 * kJoinLanes, 0, stream>>>(a.ids, a.partials, outputs, tokens, columns);
  return cudaGetLastError();
}

template <class T, int kVector>
void append_kernels(std::vector<KernelHandle>& kernels, const std::string& dtype) {
  const auto add = [&](const char* name, int threads, auto* kernel) {
    kernels.push_back({std::string(name) + "<" + dtype + ", " + std::to_string(threads) + " threads, vector " +
                           std::to_string(kVector) + ">",
                       reinterpret_cast<const void*>(kernel)});
  };
  add("embed_layer_norm_forward, narrow", kNarrowThreads<kVector>, kForwardNarrow<T, kVector>);
  add("embed_layer_norm_forward, wide", kWideThreads, kForwardWide<T, kVector>);
  add("embed_layer_norm_backward", kBackwardNarrowThreads, kBackwardNarrow<T, kVector>);
  add("embed_layer_norm_backward", kBackwardWideThreads, kBackwardWide<T, kVector>);
}

template <class T>
void append_all(std::vector<KernelHandle>& kernels, const std::string& dtype) {
  append_kernels<T, 1>(kernels, dtype);
  append_kernels<T, kWidestVector<T>>(kernels, dtype);
  const auto add = [&](const char* name, auto* kernel) {
    kernels.push_back({std::string(name) + "<" + dtype + ">", reinterpret_cast<const void*>(kernel)});
  };
  add("sum_pieces, vector 1", &sum_pieces_kernel<T, kPieceThreads, kChunk, 1>);
  add("sum_pieces, vector 4", &sum_pieces_kernel<T, kPieceThreads, kChunk, kPieceVector>);
  add("join_pieces", &join_pieces_kernel<T, kChunk, kJoinLanes>);
}

}  // namespace

cudaError_t embed_layer_norm_forward(DType dtype, const EmbedLayerNormForward& arguments, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return forward_of<float>(arguments, stream);
    case DType::kBFloat16:
      return forward_of<__nv_bfloat16>(arguments, stream);
    case DType::kFloat16:
      return forward_of<__half>(arguments, stream);
    case DType::kFloat64:
      break;  // the reference takes it
  }
  return cudaErrorInvalidValue;
}

cudaError_t embed_layer_norm_backward(DType dtype, const EmbedLayerNormBackward& arguments, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return backward_of<float>(arguments, stream);
    case DType::kBFloat16:
      return backward_of<__nv_bfloat16>(arguments, stream);
    case DType::kFloat16:
      return backward_of<__half>(arguments, stream);
    case DType::kFloat64:
      break;  // the reference takes it
  }
  return cudaErrorInvalidValue;
}

cudaError_t sums_by_id(DType dtype, const SumsById& arguments, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return sums_of<float>(arguments, stream);
    case DType::kBFloat16:
      return sums_of<__nv_bfloat16>(arguments, stream);
    case DType::kFloat16:
      return sums_of<__half>(arguments, stream);
    case DType::kFloat64:
      break;  // the reference takes it
  }
  return cudaErrorInvalidValue;
}

cudaError_t embed_layer_norm_partials(int64_t tokens, int64_t columns, int device, int* num_partials) {
  int multiprocessors = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks =
      int64_t{multiprocessors} * (backward_is_narrow(columns) ? kBackwardNarrowBlocks : kBackwardWideBlocks);
  *num_partials = static_cast<int>(std::min(tokens, blocks));
  return status;
}

int64_t sums_by_id_partials(int64_t tokens) { return 2 * ((tokens + kChunk - 1) / kChunk); }

std::vector<KernelHandle> embedding_kernels() {
  std::vector<KernelHandle> kernels;
  append_all<float>(kernels, "float32");
  append_all<__nv_bfloat16>(kernels, "bfloat16");
  append_all<__half>(kernels, "float16");
  return kernels;
}

}  // namespace dynabert::cuda
