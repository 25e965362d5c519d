// Sums of rows by id: the way from the tokens' gradients back into the tables they were read from. The plan of it, and
// why nothing is atomic, stands in dynabert_kernels/triton/sums_by_id.py.
//
// First kernel: a block for each sorted place; where a piece begins (a run's part in one chunk of kChunk places) the
// block sums its rows, a thread kVector columns at a time. Second kernel: a block for each chunk and 32 columns; where
// a run of several pieces begins in the chunk, it adds their partial sums in a fixed order. Sums are float32, rounded
// once. An id outside its table takes part nowhere.
#pragma once

#include "dynabert/scalar.cuh"

namespace dynabert {

inline constexpr int kSumTables = 3;

template <class T>
struct SumOutputs {
  T* out[kSumTables];        // (size, columns) contiguous, zeros
  int64_t size[kSumTables];  // of those that blockIdx reaches
  int64_t left_out;          // an id of table 0 that gets no sum
};

// Chosen without an index: an indexed argument would be copied to the stack.
template <class Entry>
__device__ __forceinline__ Entry entry_of(const Entry (&entries)[kSumTables], int table) {
  return table == 0 ? entries[0] : table == 1 ? entries[1] : entries[2];
}

template <class T>
__device__ __forceinline__ bool takes_part(const SumOutputs<T>& outputs, int table, int64_t id) {
  return id >= 0 && id < entry_of(outputs.size, table) && (table != 0 || id != outputs.left_out);
}

template <class T, int kThreads, int kChunk, int kVector>
__global__ void __launch_bounds__(kThreads)
    sum_pieces_kernel(const float* __restrict__ rows,     // (tokens, columns) contiguous
                      const int64_t* __restrict__ ids,    // (tables, tokens), each ascending
                      const int64_t* __restrict__ order,  // (tables, tokens): the token of each sorted place
                      float* __restrict__ partials,       // (tables, 2 * chunks, columns)
                      SumOutputs<T> outputs, int tokens, int columns) {
  const int place = blockIdx.x, table = blockIdx.y;
  ids += static_cast<int64_t>(table) * tokens;
  order += static_cast<int64_t>(table) * tokens + place;
  const int64_t own = ids[place];
  const bool same_before = place > 0 && ids[place - 1] == own;
  if (!takes_part(outputs, table, own) || (same_before && place % kChunk != 0)) return;

  const int cut = kChunk - place % kChunk, limit = cut < tokens - place ? cut : tokens - place;
  int count = 0;
#pragma unroll 8
  for (int j = 0; j < kChunk; ++j) {  // no early end: eight loads do not wait for each other
    if (j < limit && ids[place + j] == own) ++count;
  }
  const int end = place + count;
  const bool same_after = end < tokens && ids[end] == own;
  const int chunks = (tokens + kChunk - 1) / kChunk;
  // The run that comes from the chunk before has the first slot, the one that only goes on the second.
  const int64_t slot = static_cast<int64_t>(table) * 2 * chunks + 2 * (place / kChunk) + (same_before ? 0 : 1);

  for (int column = threadIdx.x * kVector; column < columns; column += kThreads * kVector) {
    float total[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) total[v] = 0.0f;
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
      const auto pack = *reinterpret_cast<const Pack<float, kVector>*>(rows + order[j] * columns + column);
#pragma unroll
      for (int v = 0; v < kVector; ++v) total[v] += pack.value[v];
    }
    if (same_before || same_after) {
      Pack<float, kVector> pack;
#pragma unroll
      for (int v = 0; v < kVector; ++v) pack.value[v] = total[v];
      *reinterpret_cast<Pack<float, kVector>*>(partials + slot * columns + column) = pack;
    } else {
      Pack<T, kVector> pack;
#pragma unroll
      for (int v = 0; v < kVector; ++v) pack.value[v] = from_float<T>(total[v]);
      *reinterpret_cast<Pack<T, kVector>*>(entry_of(outputs.out, table) + own * columns + column) = pack;
    }
  }
}

// gridDim.x is one less than the chunks: the last has none behind it.
template <class T, int kChunk, int kLanes>
__global__ void __launch_bounds__(32 * kLanes)
    join_pieces_kernel(const int64_t* __restrict__ ids,     // (tables, tokens), each ascending
                       const float* __restrict__ partials,  // (tables, 2 * chunks, columns)
                       SumOutputs<T> outputs, int tokens, int columns) {
  __shared__ float sums[kLanes][32];
  const int chunk = blockIdx.x, table = blockIdx.z;
  ids += static_cast<int64_t>(table) * tokens;
  const int begin = chunk * kChunk, next = begin + kChunk;
  const int64_t own = ids[next - 1];
  if (!takes_part(outputs, table, own) || ids[next] != own) return;
  if (begin > 0 && ids[begin - 1] == own) return;  // ascending: the whole chunk is a run that began before it

  int last = next, beyond = tokens;  // the run's last place
  while (beyond - last > 1) {
    const int middle = last + (beyond - last) / 2;
    if (ids[middle] == own) {
      last = middle;
    } else {
      beyond = middle;
    }
  }
  const int last_chunk = last / kChunk, chunks = (tokens + kChunk - 1) / kChunk;
  const int lane = threadIdx.x / 32, offset = threadIdx.x % 32;
  const int column = blockIdx.y * 32 + offset;
  float sum = 0.0f;
  if (column < columns) {
    const float* const first = partials + static_cast<int64_t>(table) * 2 * chunks * columns + column;
    if (lane == 0) sum = first[static_cast<int64_t>(2 * chunk + 1) * columns];
    for (int c = chunk + 1 + lane; c <= last_chunk; c += kLanes) sum += first[static_cast<int64_t>(2 * c) * columns];
  }
  sums[lane][offset] = sum;
  __syncthreads();
  if (lane == 0 && column < columns) {
    float total = 0.0f;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) total += sums[l][offset];
    entry_of(outputs.out, table)[own * columns + column] = from_float<T>(total);
  }
}

}  // namespace dynabert
