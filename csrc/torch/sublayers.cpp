// elastic_attention and elastic_ffn on the CPU: check, allocate, call.
#include "torch/sublayers.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/attention.h"

namespace dynabert::binding {

void finish_sublayer(const SublayerEnd& end, const std::vector<Span>& spans) {
  const int64_t tokens = end.x.size(0), columns = end.x.size(1), x_stride = end.x.stride(0);
  const void* x = end.x.const_data_ptr();
  cpu::LayerNormForward shared = {};
  shared.dtype = end.dtype;
  shared.x_bias = end.out_bias;
  shared.weight = end.ln_weight;
  shared.bias = end.ln_bias;
  shared.columns = columns;
  shared.x_stride = shared.y_stride = shared.hidden_stride = columns;
  shared.residual_stride = x_stride;
  shared.eps = end.eps;
  const DType wide = wide_dtype(end.dtype);
  int64_t done = 0;
  // Without dropout a row does not care which group it is in.
  const bool dropping = end.dropout.threshold != 0;
  for (const Span& span : dropping ? spans : merge_neighbours(spans)) {
    done = span.end;
    if (span.count == 0) {
      for (int64_t row = span.begin; row < span.end; ++row) {
        std::memcpy(at(end.y, row * columns, end.dtype), at(x, row * x_stride, end.dtype),
                    static_cast<size_t>(columns * element_size(end.dtype)));
      }
      continue;
    }
    cpu::LayerNormForward a = shared;
    a.x = at(end.projected, span.begin * columns, end.dtype);
    a.residual = at(x, span.begin * x_stride, end.dtype);
    a.y = at(end.y, span.begin * columns, end.dtype);
    a.hidden = end.hidden ? at(end.hidden, span.begin * columns, end.dtype) : nullptr;
    a.mean = end.mean ? at(end.mean, span.begin, wide) : nullptr;
    a.rstd = end.rstd ? at(end.rstd, span.begin, wide) : nullptr;
    a.dropout = of_group(end.dropout, span.group);
    torch::stable::parallel_for(0, span.end - span.begin, row_grain(columns),
                                [&](int64_t begin, int64_t last) { cpu::layer_norm_forward(a, begin, last); });
  }
  zero_columns(end.y, columns, done, tokens, 0, columns, end.dtype);
}

std::vector<ProductSpan> product_spans(const std::vector<Span>& spans, int64_t n_per_count, int64_t fixed_n,
                                       int64_t k_per_count, int64_t fixed_k) {
  std::vector<ProductSpan> products;
  for (const Span& span : merge_neighbours(spans)) {
    if (span.count == 0) continue;
    products.push_back({span.begin, span.end, n_per_count ? span.count * n_per_count : fixed_n,
                        k_per_count ? span.count * k_per_count : fixed_k});
  }
  return products;
}

DType check_hidden(const char* op, const Tensor& x) {
  check_shape(op, "x", x, {-1, -1}, "(T, C)");
  const DType dtype = float_dtype(op, "x", x);
  if (x.size(1) == 0) refuse(op, "x has shape ", shape_of(x), "; allowed: at least one column");
  check_last_stride(op, "x", x);
  return dtype;
}

void check_weight(const char* op, const char* name, const Tensor& weight, const Tensor& x) {
  check_dtype(op, name, weight, "x", x.scalar_type());
  check_last_stride(op, name, weight);
}

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
  set_position_bias(op, position_bias, type, max_heads, max_seqlen, attention);
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> elastic_ffn_fwd(
    const Tensor& x, const Tensor& in_weight, const Tensor& in_bias, const Tensor& out_weight, const Tensor& out_bias,
    const Tensor& ln_weight, const Tensor& ln_bias, const Tensor& rows, const Tensor& neuron_counts,
    std::optional<Tensor> dropout_state, int64_t max_neurons, int64_t activation, double eps, double hidden_dropout,
    int64_t dropout_stream, bool save) {
  const char* op = "elastic_ffn_fwd";
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type();
  const int64_t tokens = x.size(0), width = x.size(1);
  check_shape(op, "in_weight", in_weight, {-1, width}, "(F, C)");
  check_weight(op, "in_weight", in_weight, x);
  const int64_t neurons = in_weight.size(0);
  if (max_neurons < 0 || max_neurons > neurons) {
    refuse(op, "max_neurons is ", max_neurons, "; allowed: 0 to in_weight's ", neurons, " rows");
  }
  check_shape(op, "out_weight", out_weight, {width, neurons}, "(C, F)");
  check_weight(op, "out_weight", out_weight, x);
  const std::vector<Span> spans = read_spans(op, rows, neuron_counts, "neuron_counts", 1, max_neurons, tokens);

  const ScalarType wide = wide_type(dtype);
  Tensor y = torch::stable::new_empty(x, {tokens, width});
  Tensor active = torch::stable::new_empty(x, {tokens, max_neurons});
  Tensor pre = save ? torch::stable::new_empty(x, {tokens, max_neurons}) : nothing(type);
  Tensor hidden = save ? torch::stable::new_empty(x, {tokens, width}) : nothing(type);
  Tensor mean = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);
  Tensor rstd = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);

  Product into = {};
  into.dtype = dtype;
  into.a = x.const_data_ptr();
  into.a_stride = x.stride(0);
  into.b = in_weight.const_data_ptr();
  into.b_stride = in_weight.stride(0);
  into.bias = vector_of(op, "in_bias", in_bias, neurons, type, "(F,)");
  into.c = active.mutable_data_ptr();
  into.c_stride = max_neurons;
  into.pre = save ? pre.mutable_data_ptr() : nullptr;
  into.pre_stride = max_neurons;
  into.activation = activation_of(op, activation);

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
                     .dropout = dropout_of(op, dropout_state, hidden_dropout, dropout_stream)};
  Product out = {};
  out.dtype = dtype;
  out.a = into.c;
  out.a_stride = max_neurons;
  out.b = out_weight.const_data_ptr();
  out.b_stride = out_weight.stride(0);
  out.c = end.projected;
  out.c_stride = width;
  multiply_spans(into, product_spans(spans, 1, 0, 0, width));
  multiply_spans(out, product_spans(spans, 0, width, 1, 0));
  finish_sublayer(end, spans);
  return {y, pre, hidden, mean, rstd};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_attention_fwd", TORCH_BOX(&dynabert::binding::elastic_attention_fwd));
  m.impl("elastic_ffn_fwd", TORCH_BOX(&dynabert::binding::elastic_ffn_fwd));
}
