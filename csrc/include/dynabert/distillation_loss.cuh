// Losses of student rows against their teacher rows, summed by group. The formulas stand in
// dynabert_kernels/triton/distillation_loss.py.
//
// Forward: a team of threads (a warp for a narrow row, else a block) holds a student row and its teacher row in
// registers and writes the row's loss; a second kernel, a block for each group, adds its rows' losses by position in
// the group, so a group's loss is bit for bit what it is alone. Bytes: 2*R*C elements at most (a teacher row that
// several student rows share is found in the second-level cache) and 8*R; operations: 3*R*C, or 8*R*C and two
// exponentials each.
//
// Backward: the same teams, R*C elements more for the gradient. The sums of the softmax are formed again.
//
// Sums are float32. Rows may have any stride, columns lie side by side. No atomics: deterministic.
#pragma once

#include <cmath>

#include "dynabert/row.cuh"

namespace dynabert {

// What the plan says of the student's rows.
struct RowMatch {
  const int32_t* rows;          // (num_groups + 1)
  const int32_t* teacher_rows;  // (rows) or null: a row's own number
  const int32_t* active;        // (num_groups) or null: every group counts
  int num_groups;
};

// The teacher row of a row that counts, and its group; -1 for a row that does not, which must not be read.
__device__ __forceinline__ int64_t teacher_row(const RowMatch& match, int64_t row, int& group) {
  int beyond = match.num_groups + 1;
  group = 0;
  while (beyond - group > 1) {  // rows[group] <= row < rows[beyond]; of equal borders the last, so no empty group
    const int middle = (group + beyond) / 2;
    if (match.rows[middle] <= row) {
      group = middle;
    } else {
      beyond = middle;
    }
  }
  if (group == match.num_groups) return -1;
  if (match.active != nullptr && match.active[group] <= 0) return -1;
  return match.teacher_rows == nullptr ? row : match.teacher_rows[row];
}

// The largest entry that this thread holds. A NaN is passed over.
template <int kThreads, int kVector, int kPacks>
__device__ __forceinline__ float largest_of(const float (&x)[kPacks * kVector], int columns, int thread) {
  float top = -INFINITY;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const bool inside = pack_column<kThreads, kVector>(p, thread) < columns;
#pragma unroll
    for (int i = p * kVector; i < (p + 1) * kVector; ++i) top = inside ? fmaxf(top, x[i]) : top;
  }
  return top;
}

// Both rows in registers. For the cross-entropy: as the distance below the row's largest entry, infinite past the last
// column, so that its exponential is 0 there. `scratch`: as team_max of two values asks for.
template <int kThreads, int kVector, int kPacks, bool kSoft, class T>
__device__ __forceinline__ void load_pair(float (&s)[kPacks * kVector], float (&t)[kPacks * kVector], const T* student,
                                          const T* teacher, int columns, int thread, float* scratch) {
  load_row<kThreads, kVector, kPacks>(s, student, columns, thread);
  load_row<kThreads, kVector, kPacks>(t, teacher, columns, thread);
  if constexpr (kSoft) {
    float top[2] = {largest_of<kThreads, kVector, kPacks>(s, columns, thread),
                    largest_of<kThreads, kVector, kPacks>(t, columns, thread)};
    team_max<kThreads>(top, scratch);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const bool inside = pack_column<kThreads, kVector>(p, thread) < columns;
#pragma unroll
      for (int i = p * kVector; i < (p + 1) * kVector; ++i) {
        s[i] = inside ? top[0] - s[i] : INFINITY;
        t[i] = inside ? top[1] - t[i] : INFINITY;
      }
    }
  }
}

template <class T, int kThreads, int kRowsPerBlock, int kVector, int kPacks, bool kSoft>
__global__ void __launch_bounds__(kThreads* kRowsPerBlock)
    distillation_loss_forward_kernel(const T* __restrict__ student,  // (num_rows, columns)
                                     const T* __restrict__ teacher,  // (any, columns)
                                     float* __restrict__ row_loss,   // (num_rows)
                                     RowMatch match, int64_t num_rows, int columns, int64_t student_stride,
                                     int64_t teacher_stride) {
  static_assert(kThreads == 32 || kRowsPerBlock == 1, "a team of several warps has the block's barrier to itself");
  constexpr int kValues = kVector * kPacks, kWarps = kThreads / 32;
  // One for each reduction: to write the second, nobody waits for those who still read the first.
  __shared__ float top_scratch[2 * kWarps], sum_scratch[3 * kWarps];
  const int thread = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kThreads;
  if (row >= num_rows) return;  // whole teams leave, and only where a team needs no barrier
  int group;
  const int64_t partner = teacher_row(match, row, group);
  if (partner < 0) {  // the whole team again, since a row has one answer
    if (thread == 0) row_loss[row] = 0.0f;
    return;
  }
  float s[kValues], t[kValues];
  load_pair<kThreads, kVector, kPacks, kSoft>(s, t, student + row * student_stride, teacher + partner * teacher_stride,
                                              columns, thread, top_scratch);
  float loss;
  if constexpr (kSoft) {
    float sums[3] = {0.0f, 0.0f, 0.0f};  // of e^-s, of e^-t, and of e^-t * s
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const float weight = expf(-t[i]);
      sums[0] += expf(-s[i]);
      sums[1] += weight;
      // What the teacher rules out counts nothing, an infinite distance there too. A NaN is not 0 and stays.
      sums[2] += weight == 0.0f ? 0.0f : weight * s[i];
    }
    team_sum<kThreads>(sums, sum_scratch);
    loss = sums[2] / sums[1] + logf(sums[0]);
  } else {
    float sums[1] = {0.0f};
#pragma unroll
    for (int i = 0; i < kValues; ++i) sums[0] += (s[i] - t[i]) * (s[i] - t[i]);
    team_sum<kThreads>(sums, sum_scratch);
    loss = sums[0];
  }
  if (thread == 0) row_loss[row] = loss;
}

template <class T, int kThreads, int kRowsPerBlock, int kVector, int kPacks, bool kSoft>
__global__ void __launch_bounds__(kThreads* kRowsPerBlock)
    distillation_loss_backward_kernel(const float* __restrict__ dloss,  // (num_groups)
                                      const T* __restrict__ student,    // (num_rows, columns)
                                      const T* __restrict__ teacher,    // (any, columns)
                                      T* __restrict__ dstudent,         // (num_rows, columns), all of it written
                                      RowMatch match, int64_t num_rows, int columns, int64_t student_stride,
                                      int64_t teacher_stride, int64_t dstudent_stride) {
  static_assert(kThreads == 32 || kRowsPerBlock == 1, "a team of several warps has the block's barrier to itself");
  constexpr int kValues = kVector * kPacks, kWarps = kThreads / 32;
  __shared__ float top_scratch[2 * kWarps], sum_scratch[2 * kWarps];
  const int thread = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kThreads;
  if (row >= num_rows) return;
  int group;
  const int64_t partner = teacher_row(match, row, group);
  float s[kValues], t[kValues];
  if (partner < 0) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) s[i] = 0.0f;
    store_row<kThreads, kVector, kPacks>(dstudent + row * dstudent_stride, s, columns, thread);
    return;
  }
  load_pair<kThreads, kVector, kPacks, kSoft>(s, t, student + row * student_stride, teacher + partner * teacher_stride,
                                              columns, thread, top_scratch);
  const float scale = dloss[group];
  if constexpr (kSoft) {
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      sums[0] += s[i] = expf(-s[i]);
      sums[1] += t[i] = expf(-t[i]);
    }
    team_sum<kThreads>(sums, sum_scratch);
    const float s_part = 1.0f / sums[0], t_part = 1.0f / sums[1];
#pragma unroll
    for (int i = 0; i < kValues; ++i) s[i] = scale * (s[i] * s_part - t[i] * t_part);
  } else {
#pragma unroll
    for (int i = 0; i < kValues; ++i) s[i] = scale * (2.0f * (s[i] - t[i]));
  }
  store_row<kThreads, kVector, kPacks>(dstudent + row * dstudent_stride, s, columns, thread);
}

// loss[g] = the sum of the group's rows, g = blockIdx.x. Thread i takes every kThreads-th row from the group's i-th on.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    distillation_loss_group_sum_kernel(const float* __restrict__ row_loss,  // (num_rows)
                                       float* __restrict__ loss,            // (num_groups)
                                       const int32_t* __restrict__ rows,    // (num_groups + 1)
                                       int64_t num_rows) {
  __shared__ float scratch[kThreads / 32];
  const int group = static_cast<int>(blockIdx.x);
  const int64_t end = rows[group + 1] < num_rows ? rows[group + 1] : num_rows;
  float sums[1] = {0.0f};
  for (int64_t row = rows[group] + static_cast<int64_t>(threadIdx.x); row < end; row += kThreads) {
    sums[0] += row_loss[row];
  }
  team_sum<kThreads>(sums, scratch);
  if (threadIdx.x == 0) loss[group] = sums[0];
}

}  // namespace dynabert
