// Attention over the packed sequences of a plan, for varlen_attention and for the attention sub-layer.
#pragma once

#include <vector>

#include "cpu/attention.h"
#include "torch/arguments.h"
#include "torch/crew.h"

namespace dynabert::binding {

struct Sequences {
  std::vector<cpu::AttentionSequence> active;  // not empty, with at least one active head
  int64_t covered;                             // rows from here on belong to no sequence
};

// Throws when borders go backwards, when a sequence is longer than max_seqlen, or when one crosses the border of a
// group.
Sequences read_sequences(const char* op, const Tensor& cu_seqlens, const std::vector<Span>& spans, int64_t max_seqlen);

// A table of biases by distance, or null pointers.
struct PositionBias {
  const void* table = nullptr;
  int64_t head = 0, centre = 0;  // from one head to the next, and where distance 0 is
};

// Checks the table. `heads`: how many rows of it are used.
PositionBias read_position_bias(const char* op, const std::optional<Tensor>& position_bias, ScalarType dtype,
                                int64_t heads, int64_t max_seqlen);

// Runs the attention on all threads, and writes zeros to the active heads of rows that belong to no sequence.
void attend(cpu::AttentionForward& attention, Sequences& sequences, const std::vector<Span>& spans, Crew& crew);

// Runs the backward on all threads: dqkv of the active heads, zeros there for rows that belong to no sequence, and the
// gradient of the bias table, which is returned: like the table, or empty without one.
Tensor attend_backward(cpu::AttentionBackward& attention, Sequences& sequences, const std::vector<Span>& spans,
                       const std::optional<Tensor>& position_bias);

}  // namespace dynabert::binding
