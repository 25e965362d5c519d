// varlen_attention on the CPU: check, allocate, call.
#include "torch/attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace dynabert::binding {

Sequences read_sequences(const char* op, const Tensor& cu_seqlens, const std::vector<Span>& spans, int64_t max_seqlen) {
  const int32_t* starts = int32_vector(op, "cu_seqlens", cu_seqlens);
  const int64_t count = cu_seqlens.size(0) - 1;
  if (count < 0) refuse(op, "cu_seqlens is empty; allowed: one border more than sequences, the first 0");
  if (starts[0] != 0) refuse(op, "cu_seqlens starts at ", starts[0], "; allowed: 0");
  const int64_t tokens = spans.empty() ? 0 : spans.back().end;
  Sequences found;
  found.active.reserve(static_cast<size_t>(count));
  size_t s = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = starts[i], end = starts[i + 1];
    if (end < begin) refuse(op, "cu_seqlens goes backwards from ", begin, " to ", end, " at sequence ", i);
    if (begin >= tokens) break;  // past the plan's rows: padding, which no group owns
    if (end == begin) continue;
    if (end - begin > max_seqlen) {
      refuse(op, "sequence ", i, " has ", end - begin, " tokens; allowed: up to max_seqlen = ", max_seqlen);
    }
    while (spans[s].end <= begin) ++s;
    if (end > spans[s].end) {
      refuse(op, "sequence ", i, " is rows ", begin, " to ", end, " and crosses the border ", spans[s].end,
             " of a group; allowed: groups of whole sequences");
    }
    if (spans[s].count > 0) found.active.push_back({begin, end, spans[s].count, spans[s].group, spans[s].begin, 0, 0});
  }
  found.covered = starts[count];
  return found;
}

PositionBias read_position_bias(const char* op, const std::optional<Tensor>& position_bias, ScalarType dtype,
                                int64_t heads, int64_t max_seqlen) {
  if (!position_bias.has_value()) return {};
  const Tensor& table = *position_bias;
  check_shape(op, "position_bias", table, {-1, -1}, "(H, 2R-1)");
  check_dtype(op, "position_bias", table, "x", dtype);
  check_last_stride(op, "position_bias", table);
  if (table.size(0) < heads) {
    refuse(op, "position_bias has ", table.size(0), " rows; allowed: at least max_heads = ", heads);
  }
  if (table.size(1) % 2 == 0 || table.size(1) < 2 * max_seqlen - 1) {
    refuse(op, "position_bias has ", table.size(1),
           " distances; allowed: an odd number 2R-1 with R at least max_seqlen, ", "here at least ",
           2 * max_seqlen - 1);
  }
  return {table.const_data_ptr(), table.stride(0), table.size(1) / 2};
}

namespace {

// Zeros in heads first to last - 1 of rows begin to end - 1 of a (T, H, 3, D) tensor with these strides.
void zero_heads(void* base, int64_t row_stride, int64_t head_stride, int64_t part_stride, int64_t begin, int64_t end,
                int64_t first, int64_t last, int64_t size, DType dtype) {
  if (head_stride == 3 * part_stride && part_stride == size) {
    return zero_columns(base, row_stride, begin, end, first * head_stride, last * head_stride, dtype);
  }
  for (int64_t head = first; head < last; ++head) {
    for (int64_t part = 0; part < 3; ++part) {
      const int64_t column = head * head_stride + part * part_stride;
      zero_columns(base, row_stride, begin, end, column, column + size, dtype);
    }
  }
}

}  // namespace

void attend(cpu::AttentionForward& attention, Sequences& sequences, const std::vector<Span>& spans, Crew& crew) {
  if (!spans.empty() && sequences.covered < spans.back().end) {
    crew.share(1, 1, [&](int64_t, int64_t) {
      for (const Span& span : spans) {
        zero_columns(attention.out, attention.out_row, std::max(span.begin, sequences.covered), span.end, 0,
                     span.count * attention.head_size, attention.dtype);
      }
    });
  }
  if (sequences.active.empty()) return;
  attention.sequences = sequences.active.data();
  attention.num_sequences = static_cast<int64_t>(sequences.active.size());
  const int64_t tasks = cpu::plan_attention(attention, crew.threads());
  crew.share_tasks(attention, tasks, sequences.active.size() == 1,
                   [&](int64_t begin, int64_t end) { cpu::run_attention(attention, begin, end); });
}

Tensor attend_backward(cpu::AttentionBackward& a, Sequences& sequences, const std::vector<Span>& spans,
                       const std::optional<Tensor>& position_bias) {
  for (const Span& span : spans) {
    zero_heads(a.dqkv, a.dqkv_row, a.dqkv_head, a.dqkv_part, std::max(span.begin, sequences.covered), span.end, 0,
               span.count, a.head_size, a.dtype);
  }
  const ScalarType wide = wide_type(a.dtype);
  a.sequences = sequences.active.data();
  a.num_sequences = static_cast<int64_t>(sequences.active.size());
  const cpu::BackwardPlan plan = cpu::plan_attention_backward(a);
  // Only for the tasks: freed before the caller allocates more.
  Tensor sums = nothing(wide);
  if (position_bias.has_value()) {
    sums = torch::stable::new_empty(*position_bias, {plan.sums}, wide);
    a.sums = sums.mutable_data_ptr();
  }
  Crew crew;
  crew.share_tasks(a, plan.tasks, sequences.active.size() == 1,
                   [&](int64_t begin, int64_t end) { cpu::run_attention_backward(a, begin, end); });
  if (!position_bias.has_value()) return sums;
  const int64_t heads = position_bias->size(0), distances = position_bias->size(1);
  Tensor dbias = torch::stable::new_empty(*position_bias, {heads, distances});
  void* into = dbias.mutable_data_ptr();
  torch::stable::parallel_for(0, heads, row_grain(distances), [&](int64_t begin, int64_t end) {
    cpu::sum_position_bias(a, into, distances, begin, end);
  });
  return dbias;
}

namespace {

DType check_qkv(const char* op, const Tensor& qkv, int64_t max_heads) {
  check_shape(op, "qkv", qkv, {-1, -1, 3, -1}, "(T, H, 3, D)");
  const DType dtype = float_dtype(op, "qkv", qkv);
  check_last_stride(op, "qkv", qkv);
  if (max_heads < 0 || max_heads > qkv.size(1)) {
    refuse(op, "max_heads is ", max_heads, "; allowed: 0 to qkv's ", qkv.size(1), " heads");
  }
  if (qkv.size(3) == 0) refuse(op, "qkv has shape ", shape_of(qkv), "; allowed: a head size of at least 1");
  return dtype;
}

std::tuple<Tensor, Tensor> varlen_attention_fwd(const Tensor& qkv, const Tensor& cu_seqlens, const Tensor& rows,
                                                std::optional<Tensor> head_counts, std::optional<Tensor> position_bias,
                                                std::optional<Tensor> dropout_state, int64_t max_heads,
                                                int64_t max_seqlen, double scale, double dropout_p,
                                                int64_t dropout_stream, bool save) {
  const char* op = "varlen_attention_fwd";
  const DType dtype = check_qkv(op, qkv, max_heads);
  const int64_t tokens = qkv.size(0), size = qkv.size(3);
  const std::vector<Span> spans = read_spans(op, rows, head_counts, "head_counts", 1, max_heads, tokens);
  Sequences sequences = read_sequences(op, cu_seqlens, spans, max_seqlen);
  cpu::AttentionForward a = {};
  const PositionBias bias = read_position_bias(op, position_bias, qkv.scalar_type(), max_heads, max_seqlen);
  a.position_bias = bias.table;
  a.bias_head = bias.head;
  a.bias_centre = bias.centre;
  a.dropout = dropout_of(op, dropout_state, dropout_p, dropout_stream);

  Tensor out = torch::stable::new_empty(qkv, {tokens, max_heads, size});
  Tensor lse = save ? torch::stable::new_empty(qkv, {max_heads, tokens}, wide_type(dtype)) : nothing(wide_type(dtype));
  a.dtype = dtype;
  a.qkv = qkv.const_data_ptr();
  a.qkv_row = qkv.stride(0);
  a.qkv_head = qkv.stride(1);
  a.qkv_part = qkv.stride(2);
  a.out = out.mutable_data_ptr();
  a.out_row = max_heads * size;
  a.out_head = size;
  a.lse = save ? lse.mutable_data_ptr() : nullptr;
  a.lse_head = tokens;
  a.head_size = size;
  a.scale = scale;
  int64_t done = 0;
  for (const Span& span : merge_neighbours(spans)) {
    zero_columns(a.out, a.out_row, span.begin, span.end, span.count * size, max_heads * size, dtype);
    done = span.end;
  }
  zero_columns(a.out, a.out_row, done, tokens, 0, max_heads * size, dtype);
  if (save) {
    const DType wide = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    for (const Span& span : merge_neighbours(spans)) {
      zero_columns(a.lse, tokens, span.count, max_heads, span.begin, span.end, wide);
    }
    zero_columns(a.lse, tokens, 0, max_heads, std::min(done, sequences.covered), tokens, wide);
  }
  Crew crew;
  attend(a, sequences, spans, crew);
  return {out, lse};
}

// dout, out: (T, max_heads, D), which the backward reads beside qkv.
void check_output(const char* op, const char* name, const Tensor& tensor, const Tensor& qkv, int64_t max_heads) {
  check_shape(op, name, tensor, {qkv.size(0), max_heads, qkv.size(3)}, "(T, max_heads, D)");
  check_dtype(op, name, tensor, "qkv", qkv.scalar_type());
  check_last_stride(op, name, tensor);
}

std::tuple<Tensor, Tensor> varlen_attention_bwd(const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                                const Tensor& lse, const Tensor& cu_seqlens, const Tensor& rows,
                                                std::optional<Tensor> head_counts, std::optional<Tensor> position_bias,
                                                std::optional<Tensor> dropout_state, int64_t max_heads,
                                                int64_t max_seqlen, double scale, double dropout_p,
                                                int64_t dropout_stream) {
  const char* op = "varlen_attention_bwd";
  const DType dtype = check_qkv(op, qkv, max_heads);
  const int64_t tokens = qkv.size(0), heads = qkv.size(1), size = qkv.size(3);
  check_output(op, "dout", dout, qkv, max_heads);
  check_output(op, "out", out, qkv, max_heads);
  check_shape(op, "lse", lse, {max_heads, tokens}, "(max_heads, T)");
  if (lse.scalar_type() != wide_type(dtype)) {
    refuse(op, "lse is ", torch::headeronly::toString(lse.scalar_type()),
           "; allowed: ", torch::headeronly::toString(wide_type(dtype)), ", as the forward saved it");
  }
  check_last_stride(op, "lse", lse);
  const std::vector<Span> spans = read_spans(op, rows, head_counts, "head_counts", 1, max_heads, tokens);
  Sequences sequences = read_sequences(op, cu_seqlens, spans, max_seqlen);
  const PositionBias bias = read_position_bias(op, position_bias, qkv.scalar_type(), max_heads, max_seqlen);

  Tensor dqkv = torch::stable::empty_like(qkv);
  cpu::AttentionBackward a = {};
  a.dtype = dtype;
  a.dout = dout.const_data_ptr();
  a.dout_row = dout.stride(0);
  a.dout_head = dout.stride(1);
  a.qkv = qkv.const_data_ptr();
  a.qkv_row = qkv.stride(0);
  a.qkv_head = qkv.stride(1);
  a.qkv_part = qkv.stride(2);
  a.out = out.const_data_ptr();
  a.out_row = out.stride(0);
  a.out_head = out.stride(1);
  a.lse = lse.const_data_ptr();
  a.lse_head = lse.stride(0);
  a.position_bias = bias.table;
  a.bias_head = bias.head;
  a.bias_centre = bias.centre;
  a.dqkv = dqkv.mutable_data_ptr();
  a.dqkv_row = dqkv.stride(0);
  a.dqkv_head = dqkv.stride(1);
  a.dqkv_part = dqkv.stride(2);
  a.head_size = size;
  a.scale = scale;
  a.dropout = dropout_of(op, dropout_state, dropout_p, dropout_stream);
  int64_t done = 0;
  for (const Span& span : merge_neighbours(spans)) {
    zero_heads(a.dqkv, a.dqkv_row, a.dqkv_head, a.dqkv_part, span.begin, span.end, span.count, heads, size, dtype);
    done = span.end;
  }
  zero_heads(a.dqkv, a.dqkv_row, a.dqkv_head, a.dqkv_part, done, tokens, 0, heads, size, dtype);
  Tensor dposition_bias = attend_backward(a, sequences, spans, position_bias);
  return {dqkv, dposition_bias};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("varlen_attention_fwd", TORCH_BOX(&dynabert::binding::varlen_attention_fwd));
  m.impl("varlen_attention_bwd", TORCH_BOX(&dynabert::binding::varlen_attention_bwd));
}
