// elastic_attention on the CPU: check, allocate, call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/attention.h"
#include "torch/sublayers.h"

namespace dynabert::binding {
namespace {

// Heads that lie one behind the other are one block; in any other layout each head's query, key and value is one.
std::vector<HeadBlock> head_blocks(const Tensor& weight, const std::vector<Span>& spans, int64_t max_heads) {
  const int64_t size = weight.size(2), row = weight.stride(2), width = weight.size(3);
  const bool parts_follow = weight.stride(1) == size * row;
  const bool heads_follow = weight.size(0) == 1 || weight.stride(0) == 3 * size * row;
  if (parts_follow && heads_follow) {
    return {{0, 0, product_spans(spans, 3 * size, 0, 0, width)}};
  }
  std::vector<HeadBlock> blocks;
  for (int64_t head = 0; head < max_heads; ++head) {
    std::vector<ProductSpan> reaching;
    for (const Span& span : merge_neighbours(spans)) {
      if (span.count > head) reaching.push_back({span.begin, span.end, size, width});
    }
    for (int64_t part = 0; part < 3; ++part) {
      const int64_t start = head * weight.stride(0) + part * weight.stride(1);
      blocks.push_back({start, (head * 3 + part) * size, reaching});
    }
  }
  return blocks;
}

void check_max_heads(const char* op, int64_t max_heads, int64_t heads) {
  if (max_heads < 0 || max_heads > heads) {
    refuse(op, "max_heads is ", max_heads, "; allowed: 0 to qkv_weight's ", heads, " heads");
  }
}

// Returns the number of heads.
int64_t check_attention_weights(const char* op, const Tensor& qkv_weight, const Tensor& out_weight, const Tensor& x,
                                int64_t max_heads) {
  const int64_t width = x.size(1);
  check_shape(op, "qkv_weight", qkv_weight, {-1, 3, -1, width}, "(H, 3, D, C)");
  check_weight(op, "qkv_weight", qkv_weight, x);
  const int64_t heads = qkv_weight.size(0), size = qkv_weight.size(2);
  if (size == 0) refuse(op, "qkv_weight has shape ", shape_of(qkv_weight), "; allowed: a head size of at least 1");
  check_max_heads(op, max_heads, heads);
  check_shape(op, "out_weight", out_weight, {width, heads * size}, "(C, H*D)");
  check_weight(op, "out_weight", out_weight, x);
  return heads;
}

}  // namespace

AttentionOperands attention_operands(const char* op, const Tensor& x, const Tensor& qkv_weight, const Tensor& qkv_bias,
                                     const Tensor& out_weight, const std::vector<Span>& spans, int64_t max_heads,
                                     bool packed) {
  AttentionOperands operands = {};
  const int64_t width = x.size(1);
  if (packed) {  // the bias knows the shape
    check_shape(op, "qkv_bias", qkv_bias, {-1, 3, -1}, "(H, 3, D)");
    operands.heads = qkv_bias.size(0);
    operands.size = qkv_bias.size(2);
    if (operands.size == 0)
      refuse(op, "qkv_bias has shape ", shape_of(qkv_bias), "; allowed: a head size of at least 1");
    check_max_heads(op, max_heads, operands.heads);
    const int64_t inner = operands.heads * operands.size;
    operands.qkv = packed_matrix(op, "qkv_weight", qkv_weight, x, 3 * inner, width);
    operands.out = packed_matrix(op, "out_weight", out_weight, x, width, inner);
    operands.blocks = {{0, 0, product_spans(spans, 3 * operands.size, 0, 0, width)}};
  } else {
    operands.heads = check_attention_weights(op, qkv_weight, out_weight, x, max_heads);
    operands.size = qkv_weight.size(2);
    check_shape(op, "qkv_bias", qkv_bias, {operands.heads, 3, operands.size}, "(H, 3, D)");
    operands.qkv = {qkv_weight.const_data_ptr(), qkv_weight.stride(2), 0};
    operands.out = {out_weight.const_data_ptr(), out_weight.stride(0), 0};
    operands.blocks = head_blocks(qkv_weight, spans, max_heads);
  }
  check_dtype(op, "qkv_bias", qkv_bias, "x", x.scalar_type());
  if (!qkv_bias.is_contiguous()) refuse(op, "qkv_bias is not contiguous; pass it contiguous");
  operands.qkv_bias = qkv_bias.const_data_ptr();
  operands.max_heads = max_heads;
  return operands;
}

void run_attention_sublayer(const AttentionOperands& operands, cpu::AttentionForward attention, const SublayerEnd& end,
                            Sequences& sequences, const std::vector<Span>& spans, Crew& crew) {
  const int64_t size = operands.size, columns = operands.max_heads * size;
  void* qkv = const_cast<void*>(attention.qkv);
  // qkv[t, :k] = x[t] . weight[:k]^T + bias[:k] with k heads.
  for (const HeadBlock& block : operands.blocks) {
    Product into = {};
    into.dtype = end.dtype;
    into.a = end.x;
    into.a_stride = end.x_stride;
    into.b = at(operands.qkv.data, block.weight, end.dtype);
    into.b_stride = operands.qkv.stride;
    into.packed_inputs = operands.qkv.packed_inputs;
    into.bias = at(operands.qkv_bias, block.column, end.dtype);
    into.c = at(qkv, block.column, end.dtype);
    into.c_stride = 3 * columns;
    multiply_spans(into, block.spans, crew);
  }

  attention.dtype = end.dtype;
  attention.qkv_row = 3 * columns;
  attention.qkv_head = 3 * size;
  attention.qkv_part = size;
  attention.out_row = columns;
  attention.out_head = size;
  attention.lse_head = end.tokens;
  attention.head_size = size;
  attend(attention, sequences, spans, crew);

  Product out = {};
  out.dtype = end.dtype;
  out.a = attention.out;
  out.a_stride = columns;
  out.b = operands.out.data;
  out.b_stride = operands.out.stride;
  out.packed_inputs = operands.out.packed_inputs;
  out.c = end.projected;
  out.c_stride = end.columns;
  multiply_spans(out, product_spans(spans, 0, end.columns, size, 0), crew);
  finish_sublayer(end, spans, crew);
}

namespace {

// y, qkv, context, lse, hidden, mean, rstd
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
  const std::vector<Span> spans = read_spans(op, rows, head_counts, "head_counts", 1, max_heads, tokens);
  const AttentionOperands operands =
      attention_operands(op, x, qkv_weight, qkv_bias, out_weight, spans, max_heads, false);
  Sequences sequences = read_sequences(op, cu_seqlens, spans, max_seqlen);

  cpu::AttentionForward attention = {};
  const PositionBias bias = read_position_bias(op, position_bias, type, max_heads, max_seqlen);
  attention.position_bias = bias.table;
  attention.bias_head = bias.head;
  attention.bias_centre = bias.centre;
  attention.scale = scale;
  attention.dropout = dropout_of(op, dropout_state, attention_dropout, dropout_stream);
  const ScalarType wide = wide_type(dtype);
  Tensor y = torch::stable::new_empty(x, {tokens, width});
  // Working memory when nothing is saved, results when it is.
  Tensor qkv = torch::stable::new_empty(x, {tokens, max_heads, 3, operands.size});
  Tensor context = torch::stable::new_empty(x, {tokens, max_heads, operands.size});
  Tensor lse = save ? torch::stable::new_empty(x, {max_heads, tokens}, wide) : nothing(wide);
  Tensor hidden = save ? torch::stable::new_empty(x, {tokens, width}) : nothing(type);
  Tensor mean = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);
  Tensor rstd = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);
  attention.qkv = qkv.mutable_data_ptr();
  attention.out = context.mutable_data_ptr();
  attention.lse = save ? lse.mutable_data_ptr() : nullptr;
  const SublayerEnd end = {.dtype = dtype,
                           .x = x.const_data_ptr(),
                           .tokens = tokens,
                           .columns = width,
                           .x_stride = x.stride(0),
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
  Crew crew;
  run_attention_sublayer(operands, attention, end, sequences, spans, crew);
  if (save) return {y, qkv, context, lse, hidden, mean, rstd};
  return {y, nothing(type), nothing(type), lse, hidden, mean, rstd};
}

// dx += dqkv . weight
void project_heads_backward(InputGradient p, const Tensor& weight, const std::vector<Span>& spans, int64_t max_heads) {
  const void* dqkv = p.a;
  p.b_stride = weight.stride(2);
  for (const HeadBlock& block : head_blocks(weight, spans, max_heads)) {
    p.a = at(dqkv, block.column, p.dtype);
    p.b = at(weight.const_data_ptr(), block.weight, p.dtype);
    input_gradient(p, block.spans);
  }
}

using AttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

AttentionGradients elastic_attention_bwd(const Tensor& dy, const Tensor& x, const Tensor& qkv_weight,
                                         const Tensor& out_weight, const Tensor& ln_weight, const Tensor& qkv,
                                         const Tensor& context, const Tensor& lse, const Tensor& hidden,
                                         const Tensor& mean, const Tensor& rstd, const Tensor& cu_seqlens,
                                         const Tensor& rows, const Tensor& head_counts,
                                         std::optional<Tensor> position_bias, std::optional<Tensor> dropout_state,
                                         int64_t max_heads, int64_t max_seqlen, double scale, double attention_dropout,
                                         double hidden_dropout, int64_t dropout_stream) {
  const char* op = "elastic_attention_bwd";
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type(), wide = wide_type(dtype);
  const int64_t tokens = x.size(0), width = x.size(1);
  check_shape(op, "dy", dy, {tokens, width}, "(T, C)");
  check_dtype(op, "dy", dy, "x", type);
  check_last_stride(op, "dy", dy);
  const int64_t heads = check_attention_weights(op, qkv_weight, out_weight, x, max_heads), size = qkv_weight.size(2);
  const std::vector<Span> spans = read_spans(op, rows, head_counts, "head_counts", 1, max_heads, tokens);
  Sequences sequences = read_sequences(op, cu_seqlens, spans, max_seqlen);
  const PositionBias bias = read_position_bias(op, position_bias, type, max_heads, max_seqlen);

  cpu::AttentionBackward attention = {};
  attention.dtype = dtype;
  attention.qkv = saved_result(op, "qkv", qkv, {tokens, max_heads, 3, size}, type, "(T, max_heads, 3, D)");
  attention.out = saved_result(op, "context", context, {tokens, max_heads, size}, type, "(T, max_heads, D)");
  attention.lse = saved_result(op, "lse", lse, {max_heads, tokens}, wide, "(max_heads, T)");
  attention.qkv_row = attention.dqkv_row = max_heads * 3 * size;
  attention.qkv_head = attention.dqkv_head = 3 * size;
  attention.qkv_part = attention.dqkv_part = size;
  attention.out_row = attention.dout_row = max_heads * size;
  attention.out_head = attention.dout_head = size;
  attention.lse_head = tokens;
  attention.position_bias = bias.table;
  attention.bias_head = bias.head;
  attention.bias_centre = bias.centre;
  attention.head_size = size;
  attention.scale = scale;
  attention.dropout = dropout_of(op, dropout_state, attention_dropout, dropout_stream);
  const Dropout dropout = dropout_of(op, dropout_state, hidden_dropout, dropout_stream + 1);

  Tensor dx = torch::stable::new_empty(x, {tokens, width});
  Tensor dqkv_weight = torch::stable::new_empty(qkv_weight, {heads, 3, size, width});
  Tensor dqkv_bias = torch::stable::new_empty(qkv_weight, {heads, 3, size});
  Tensor dout_weight = torch::stable::empty_like(out_weight);
  Tensor dout_bias = torch::stable::new_empty(out_weight, {width});
  Tensor dln_weight = torch::stable::new_empty(ln_weight, {width});
  Tensor dln_bias = torch::stable::new_empty(ln_weight, {width});
  Tensor dprojected = dropout.threshold != 0 ? torch::stable::new_empty(x, {tokens, width}) : dx;
  Tensor dcontext = torch::stable::new_empty(x, {tokens, max_heads, size});
  Tensor dqkv = torch::stable::new_empty(x, {tokens, max_heads, 3, size});

  begin_sublayer_backward({.op = op,
                           .dtype = dtype,
                           .dy = dy,
                           .hidden = saved_result(op, "hidden", hidden, {tokens, width}, type, "(T, C)"),
                           .ln_weight = vector_of(op, "ln_weight", ln_weight, width, type),
                           .mean = vector_of(op, "mean", mean, tokens, wide, "(T,)"),
                           .rstd = vector_of(op, "rstd", rstd, tokens, wide, "(T,)"),
                           .dropout = dropout,
                           .dx = dx.mutable_data_ptr(),
                           .dprojected = dprojected.mutable_data_ptr(),
                           .dln_weight = dln_weight.mutable_data_ptr(),
                           .dln_bias = dln_bias.mutable_data_ptr(),
                           .dout_bias = dout_bias.mutable_data_ptr()},
                          spans);

  const std::vector<ProductSpan> out_spans = product_spans(spans, 0, width, size, 0);
  InputGradient out = {};
  out.dtype = dtype;
  out.a = dprojected.const_data_ptr();
  out.a_stride = width;
  out.b = out_weight.const_data_ptr();
  out.b_stride = out_weight.stride(0);
  out.c = dcontext.mutable_data_ptr();
  out.c_stride = attention.dout_row;
  input_gradient(out, out_spans);
  weight_gradient({.dtype = dtype,
                   .dy = out.a,
                   .x = attention.out,
                   .dw = dout_weight.mutable_data_ptr(),
                   .db = nullptr,
                   .dy_stride = width,
                   .x_stride = attention.out_row,
                   .dw_stride = dout_weight.stride(0),
                   .rows = width,
                   .columns = heads * size},
                  out_spans);

  attention.dout = out.c;
  attention.dqkv = dqkv.mutable_data_ptr();
  Tensor dposition_bias = attend_backward(attention, sequences, spans, position_bias);

  InputGradient into = {};
  into.dtype = dtype;
  into.a = attention.dqkv;
  into.a_stride = attention.dqkv_row;
  into.added = into.c = dx.mutable_data_ptr();
  into.added_stride = into.c_stride = width;
  project_heads_backward(into, qkv_weight, spans, max_heads);
  weight_gradient({.dtype = dtype,
                   .dy = into.a,
                   .x = x.const_data_ptr(),
                   .dw = dqkv_weight.mutable_data_ptr(),
                   .db = dqkv_bias.mutable_data_ptr(),
                   .dy_stride = into.a_stride,
                   .x_stride = x.stride(0),
                   .dw_stride = width,
                   .rows = heads * 3 * size,
                   .columns = width},
                  product_spans(spans, 3 * size, 0, 0, width));
  return {dx, dqkv_weight, dqkv_bias, dout_weight, dout_bias, dln_weight, dln_bias, dposition_bias};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_attention_fwd", TORCH_BOX(&dynabert::binding::elastic_attention_fwd));
  m.impl("elastic_attention_bwd", TORCH_BOX(&dynabert::binding::elastic_attention_bwd));
}
