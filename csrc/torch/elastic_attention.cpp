// elastic_attention on the CPU: check, allocate, call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/attention.h"
#include "torch/sublayers.h"

namespace dynabert::binding {
namespace {

// qkv[t, :k] = x[t] . weight[:k]^T + bias[:k] with k heads. Heads that lie one behind the other are one product; in any
// other layout each head's query, key and value is one.
void project_heads(const char* op, Product p, const Tensor& weight, const Tensor& bias, const std::vector<Span>& spans,
                   int64_t max_heads) {
  const int64_t size = weight.size(2), row = weight.stride(2);
  if (!bias.is_contiguous()) refuse(op, "qkv_bias is not contiguous; pass it contiguous");
  p.b_stride = row;
  const bool parts_follow = weight.stride(1) == size * row;
  const bool heads_follow = weight.size(0) == 1 || weight.stride(0) == 3 * size * row;
  if (parts_follow && heads_follow) {
    p.b = weight.const_data_ptr();
    p.bias = bias.const_data_ptr();
    multiply_spans(p, product_spans(spans, 3 * size, 0, 0, weight.size(3)));
    return;
  }
  void* c = p.c;
  for (int64_t head = 0; head < max_heads; ++head) {
    std::vector<ProductSpan> reaching;
    for (const Span& span : merge_neighbours(spans)) {
      if (span.count > head) reaching.push_back({span.begin, span.end, size, weight.size(3)});
    }
    for (int64_t part = 0; part < 3; ++part) {
      const int64_t column = (head * 3 + part) * size;
      p.b = at(weight.const_data_ptr(), head * weight.stride(0) + part * weight.stride(1), p.dtype);
      p.bias = at(bias.const_data_ptr(), column, p.dtype);
      p.c = at(c, column, p.dtype);
      multiply_spans(p, reaching);
    }
  }
}

using AttentionOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

AttentionOutputs elastic_attention_fwd(const Tensor& x, const Tensor& qkv_weight, const Tensor& qkv_bias,
                                       const Tensor& out_weight, const Tensor& out_bias, const Tensor& ln_weight,
                                       const Tensor& ln_bias, const Tensor& cu_seqlens, const Tensor& rows,
                                       const Tensor& head_counts, std::optional<Tensor> position_bias,
                                       std::optional<Tensor> dropout_state, int64_t max_heads, int64_t max_seqlen,
                                       double scale, double eps, double attention_dropout, double hidden_dropout,
                                       int64_t dropout_stream, bool save) {
  const char* op = "elastic_attention_fwd";
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type();
  const int64_t tokens = x.size(0), width = x.size(1);
  check_shape(op, "qkv_weight", qkv_weight, {-1, 3, -1, width}, "(H, 3, D, C)");
  check_weight(op, "qkv_weight", qkv_weight, x);
  const int64_t heads = qkv_weight.size(0), size = qkv_weight.size(2);
  if (size == 0) refuse(op, "qkv_weight has shape ", shape_of(qkv_weight), "; allowed: a head size of at least 1");
  if (max_heads < 0 || max_heads > heads) {
    refuse(op, "max_heads is ", max_heads, "; allowed: 0 to qkv_weight's ", heads, " heads");
  }
  check_shape(op, "qkv_bias", qkv_bias, {heads, 3, size}, "(H, 3, D)");
  check_dtype(op, "qkv_bias", qkv_bias, "x", type);
  check_shape(op, "out_weight", out_weight, {width, heads * size}, "(C, H*D)");
  check_weight(op, "out_weight", out_weight, x);
  const std::vector<Span> spans = read_spans(op, rows, head_counts, "head_counts", 1, max_heads, tokens);
  Sequences sequences = read_sequences(op, cu_seqlens, spans, max_seqlen);

  cpu::AttentionForward attention = {};
  const PositionBias bias = read_position_bias(op, position_bias, type, max_heads, max_seqlen);
  attention.position_bias = bias.table;
  attention.bias_head = bias.head;
  attention.bias_centre = bias.centre;
  attention.dropout = dropout_of(op, dropout_state, attention_dropout, dropout_stream);
  const ScalarType wide = wide_type(dtype);
  Tensor y = torch::stable::new_empty(x, {tokens, width});
  // Working memory when nothing is saved, results when it is.
  Tensor qkv = torch::stable::new_empty(x, {tokens, max_heads, 3, size});
  Tensor context = torch::stable::new_empty(x, {tokens, max_heads, size});
  Tensor lse = save ? torch::stable::new_empty(x, {max_heads, tokens}, wide) : nothing(wide);
  Tensor hidden = save ? torch::stable::new_empty(x, {tokens, width}) : nothing(type);
  Tensor mean = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);
  Tensor rstd = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);

  Product into = {};
  into.dtype = dtype;
  into.a = x.const_data_ptr();
  into.a_stride = x.stride(0);
  into.c = qkv.mutable_data_ptr();
  into.c_stride = max_heads * 3 * size;
  project_heads(op, into, qkv_weight, qkv_bias, spans, max_heads);

  attention.dtype = dtype;
  attention.qkv = into.c;
  attention.qkv_row = max_heads * 3 * size;
  attention.qkv_head = 3 * size;
  attention.qkv_part = size;
  attention.out = context.mutable_data_ptr();
  attention.out_row = max_heads * size;
  attention.out_head = size;
  attention.lse = save ? lse.mutable_data_ptr() : nullptr;
  attention.lse_head = tokens;
  attention.head_size = size;
  attention.scale = scale;
  attend(attention, sequences, spans);

  SublayerEnd end = {.op = op,
                     .dtype = dtype,
                     .x = x,
                     .out_bias = vector_of(op, "out_bias", out_bias, width, type),
                     .ln_weight = vector_of(op, "ln_weight", ln_weight, width, type),
                     .ln_bias = vector_of(op, "ln_bias", ln_bias, width, type),
                     .projected = save ? hidden.mutable_data_ptr() : y.mutable_data_ptr(),
                     .y = y.mutable_data_ptr(),
                     .hidden = save ? hidden.mutable_data_ptr() : nullptr,
                     .mean = save ? mean.mutable_data_ptr() : nullptr,
                     .rstd = save ? rstd.mutable_data_ptr() : nullptr,
                     .eps = eps,
                     .dropout = dropout_of(op, dropout_state, hidden_dropout, dropout_stream + 1)};
  Product out = {};
  out.dtype = dtype;
  out.a = attention.out;
  out.a_stride = attention.out_row;
  out.b = out_weight.const_data_ptr();
  out.b_stride = out_weight.stride(0);
  out.c = end.projected;
  out.c_stride = width;
  multiply_spans(out, product_spans(spans, 0, width, size, 0));
  finish_sublayer(end, spans);
  if (save) return {y, qkv, context, lse, hidden, mean, rstd};
  return {y, nothing(type), nothing(type), lse, hidden, mean, rstd};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_attention_fwd", TORCH_BOX(&dynabert::binding::elastic_attention_fwd));
}
