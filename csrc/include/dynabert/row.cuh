// A row of a matrix held in registers by a team of threads, and sums over it.
//
// A team is kThreads consecutive threads: one warp, or a whole block. Each holds kPacks packs of kVector elements, pack
// p of thread t being the columns from (p * kThreads + t) * kVector on: neighbours load neighbouring packs. Where
// kVector > 1 the number of columns must be a multiple of it, and the row's address a multiple of its size, so that a
// pack is inside or outside.
#pragma once

#include "dynabert/scalar.cuh"

namespace dynabert {

template <int kThreads, int kVector>
__device__ __forceinline__ int pack_column(int pack, int thread) {
  return (pack * kThreads + thread) * kVector;
}

// values = row, and zero past the last column.
template <int kThreads, int kVector, int kPacks, class T>
__device__ __forceinline__ void load_row(float (&values)[kPacks * kVector], const T* row, int columns, int thread) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = pack_column<kThreads, kVector>(p, thread);
    Pack<T, kVector> pack;
    const bool inside = column < columns;
    if (inside) pack = *reinterpret_cast<const Pack<T, kVector>*>(row + column);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[p * kVector + i] = inside ? to_float(pack.value[i]) : 0.0f;
  }
}

// values += row.
template <int kThreads, int kVector, int kPacks, class T>
__device__ __forceinline__ void add_row(float (&values)[kPacks * kVector], const T* row, int columns, int thread) {
  float addend[kPacks * kVector];
  load_row<kThreads, kVector, kPacks>(addend, row, columns, thread);
#pragma unroll
  for (int i = 0; i < kPacks * kVector; ++i) values[i] += addend[i];
}

// row = values, rounded once; nothing past the last column.
template <int kThreads, int kVector, int kPacks, class T>
__device__ __forceinline__ void store_row(T* row, const float (&values)[kPacks * kVector], int columns, int thread) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = pack_column<kThreads, kVector>(p, thread);
    Pack<T, kVector> pack;
#pragma unroll
    for (int i = 0; i < kVector; ++i) pack.value[i] = from_float<T>(values[p * kVector + i]);
    if (column < columns) *reinterpret_cast<Pack<T, kVector>*>(row + column) = pack;
  }
}

// Sum over the warp, the same bits in every lane: each step adds the same two numbers on both sides.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Sums of kCount values over the team, the same bits in every thread. `scratch` is shared memory of this team, of
// kCount times kThreads / 32 floats (unused by a team of one warp). It holds one barrier only, after the write: who
// calls it again must give other scratch, and may come back to the first after that.
template <int kThreads, int kCount>
__device__ __forceinline__ void team_sum(float (&values)[kCount], float* scratch) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
  if constexpr (kThreads > 32) {
    constexpr int kWarps = kThreads / 32;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) scratch[i * kWarps + warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += scratch[i * kWarps + w];
      values[i] = total;
    }
  }
}

// The largest of kCount values over the team, as team_sum. A NaN is passed over.
template <int kThreads, int kCount>
__device__ __forceinline__ void team_max(float (&values)[kCount], float* scratch) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_max(values[i]);
  if constexpr (kThreads > 32) {
    constexpr int kWarps = kThreads / 32;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) scratch[i * kWarps + warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) values[i] = fmaxf(values[i], scratch[i * kWarps + w]);
    }
  }
}

}  // namespace dynabert
