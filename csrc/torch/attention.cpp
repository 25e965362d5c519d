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
    if (spans[s].count > 0) found.active.push_back({begin, end, spans[s].count, spans[s].group, spans[s].begin, 0});
  }
  found.covered = starts[count];
  return found;
}

void set_position_bias(const char* op, const std::optional<Tensor>& position_bias, ScalarType dtype, int64_t heads,
                       int64_t max_seqlen, cpu::AttentionForward& attention) {
  if (!position_bias.has_value()) return;
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
  attention.position_bias = table.const_data_ptr();
  attention.bias_head = table.stride(0);
  attention.bias_centre = table.size(1) / 2;
}

void attend(cpu::AttentionForward& attention, Sequences& sequences, const std::vector<Span>& spans) {
  for (const Span& span : spans) {
    zero_columns(attention.out, attention.out_row, std::max(span.begin, sequences.covered), span.end, 0,
                 span.count * attention.head_size, attention.dtype);
  }
  if (sequences.active.empty()) return;
  attention.sequences = sequences.active.data();
  attention.num_sequences = static_cast<int64_t>(sequences.active.size());
  const int64_t tasks = cpu::plan_attention(attention, static_cast<int64_t>(torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, tasks, 1,
                              [&](int64_t begin, int64_t end) { cpu::run_attention(attention, begin, end); });
}

namespace {

std::tuple<Tensor, Tensor> varlen_attention_fwd(const Tensor& qkv, const Tensor& cu_seqlens, const Tensor& rows,
                                                std::optional<Tensor> head_counts, std::optional<Tensor> position_bias,
                                                std::optional<Tensor> dropout_state, int64_t max_heads,
                                                int64_t max_seqlen, double scale, double dropout_p,
                                                int64_t dropout_stream, bool save) {
  const char* op = "varlen_attention_fwd";
  check_shape(op, "qkv", qkv, {-1, -1, 3, -1}, "(T, H, 3, D)");
  const DType dtype = float_dtype(op, "qkv", qkv);
  check_last_stride(op, "qkv", qkv);
  const int64_t tokens = qkv.size(0), size = qkv.size(3);
  if (max_heads < 0 || max_heads > qkv.size(1)) {
    refuse(op, "max_heads is ", max_heads, "; allowed: 0 to qkv's ", qkv.size(1), " heads");
  }
  if (size == 0) refuse(op, "qkv has shape ", shape_of(qkv), "; allowed: a head size of at least 1");
  const std::vector<Span> spans = read_spans(op, rows, head_counts, "head_counts", 1, max_heads, tokens);
  Sequences sequences = read_sequences(op, cu_seqlens, spans, max_seqlen);
  cpu::AttentionForward a = {};
  set_position_bias(op, position_bias, qkv.scalar_type(), max_heads, max_seqlen, a);
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
  attend(a, sequences, spans);
  return {out, lse};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("varlen_attention_fwd", TORCH_BOX(&dynabert::binding::varlen_attention_fwd));
}
