// Attention over packed sequences: pointers, sizes and strides in elements.
#pragma once

#include "dynabert/element.h"

namespace dynabert::cpu {

// One sequence and the heads that are active in it.
struct AttentionSequence {
  int64_t begin, end;   // rows
  int64_t heads;        // at least 1
  int64_t group;        // for dropout
  int64_t group_begin;  // first row of the group
  int64_t first_task;   // set by plan_attention and plan_attention_backward
  int64_t first_sum;    // set by plan_attention_backward: where the sums of its first head by distance start
};

// The sequence and head that come after those of `task`, whose sequence is number s: a task with that head follows.
struct NextHead {
  const AttentionSequence* sequence;
  int64_t head;
};
inline NextHead next_head(const AttentionSequence* sequences, int64_t count, int64_t s, int64_t head, int64_t task) {
  if (head + 1 < sequences[s].heads) return {&sequences[s], head + 1};
  while (s + 1 < count && sequences[s + 1].first_task <= task + 1) ++s;
  return {&sequences[s], 0};
}

struct AttentionForward {
  DType dtype;
  const void* qkv;  // (T, H, 3, D)
  int64_t qkv_row, qkv_head, qkv_part;
  void* out;  // (T, heads, D)
  int64_t out_row, out_head;
  void* lse;  // (heads, T) of the wide type, or null
  int64_t lse_head;
  const void* position_bias;  // (heads, 2R-1), or null
  int64_t bias_head, bias_centre;
  int64_t head_size;
  double scale;
  Dropout dropout;  // the group's index is added here
  AttentionSequence* sequences;
  int64_t num_sequences;
  // Set by plan_attention.
  int64_t query_block;
};

// Cuts the work for this many threads into tasks of one sequence, one head and a block of queries; returns how many.
int64_t plan_attention(AttentionForward& attention, int64_t threads);

void run_attention(const AttentionForward& attention, int64_t begin, int64_t end);

struct AttentionBackward {
  DType dtype;
  const void* dout;  // (T, heads, D)
  int64_t dout_row, dout_head;
  const void* qkv;  // (T, H, 3, D)
  int64_t qkv_row, qkv_head, qkv_part;
  const void* out;  // (T, heads, D)
  int64_t out_row, out_head;
  const void* lse;  // (heads, T) of the wide type
  int64_t lse_head;
  const void* position_bias;  // (heads, 2R-1), or null
  int64_t bias_head, bias_centre;
  void* dqkv;  // (T, H, 3, D)
  int64_t dqkv_row, dqkv_head, dqkv_part;
  // Of the wide type, as many numbers as plan_attention_backward says, or null: each sequence's and head's gradients of
  // the scores, summed by distance.
  void* sums;
  int64_t head_size;
  double scale;
  Dropout dropout;  // the group's index is added here
  AttentionSequence* sequences;
  int64_t num_sequences;
};

struct BackwardPlan {
  int64_t tasks;  // one sequence and one head each
  int64_t sums;   // numbers
};
BackwardPlan plan_attention_backward(AttentionBackward& attention);

void run_attention_backward(const AttentionBackward& attention, int64_t begin, int64_t end);

// dposition_bias[head, :] for heads begin to end - 1: the sums of the sequences that use the head, in their order.
void sum_position_bias(const AttentionBackward& attention, void* dbias, int64_t distances, int64_t begin, int64_t end);

}  // namespace dynabert::cpu
