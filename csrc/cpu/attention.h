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
  int64_t first_task;   // set by plan_attention
};

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

}  // namespace dynabert::cpu
