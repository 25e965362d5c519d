// elastic_linear on the CPU: check, allocate, call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/matmul.h"

namespace dynabert::binding {
namespace {

std::tuple<Tensor, Tensor> elastic_linear_fwd(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                                              std::optional<Tensor> residual, const Tensor& rows,
                                              std::optional<Tensor> out_counts, std::optional<Tensor> in_counts,
                                              int64_t out_unit, int64_t in_unit, int64_t max_out, int64_t max_in,
                                              int64_t activation, bool save) {
  const char* op = "elastic_linear_fwd";
  check_shape(op, "x", x, {-1, -1}, "(T, K)");
  check_shape(op, "weight", weight, {-1, -1}, "(N, K)");
  Product p = {};
  p.dtype = float_dtype(op, "x", x);
  check_dtype(op, "weight", weight, "x", x.scalar_type());
  check_last_stride(op, "x", x);
  check_last_stride(op, "weight", weight);
  const int64_t tokens = x.size(0);
  if (max_out < 0 || max_out > weight.size(0)) {
    refuse(op, "max_out is ", max_out, "; allowed: 0 to the weight's ", weight.size(0), " rows");
  }
  if (max_in < 0 || max_in > weight.size(1) || max_in > x.size(1)) {
    refuse(op, "max_in is ", max_in, "; allowed: 0 to the weight's ", weight.size(1), " and x's ", x.size(1),
           " columns");
  }
  p.activation = activation_of(op, activation);
  if (bias.has_value()) p.bias = vector_of(op, "bias", *bias, weight.size(0), x.scalar_type(), "(N,)");
  if (residual.has_value()) {
    check_shape(op, "residual", *residual, {tokens, -1}, "(T, N)");
    check_dtype(op, "residual", *residual, "x", x.scalar_type());
    check_last_stride(op, "residual", *residual);
    if (residual->size(1) < max_out) {
      refuse(op, "residual has ", residual->size(1), " columns; allowed: at least max_out = ", max_out);
    }
    p.residual = residual->const_data_ptr();
    p.residual_stride = residual->stride(0);
  }
  const std::vector<Span> outs = read_spans(op, rows, out_counts, "out_counts", out_unit, max_out, tokens);
  const std::vector<Span> ins = read_spans(op, rows, in_counts, "in_counts", in_unit, max_in, tokens);

  Tensor y = torch::stable::new_empty(x, {tokens, max_out});
  const bool keep_pre = save && p.activation != Activation::kNone;
  Tensor pre = keep_pre ? torch::stable::new_empty(x, {tokens, max_out}) : nothing(x.scalar_type());
  p.a = x.const_data_ptr();
  p.a_stride = x.stride(0);
  p.b = weight.const_data_ptr();
  p.b_stride = weight.stride(0);
  p.c = y.mutable_data_ptr();
  p.c_stride = max_out;
  p.pre = keep_pre ? pre.mutable_data_ptr() : nullptr;
  p.pre_stride = max_out;

  std::vector<ProductSpan> spans;
  int64_t done = 0;
  for (size_t i = 0; i < outs.size(); ++i) {
    const ProductSpan span = {outs[i].begin, outs[i].end, outs[i].count, ins[i].count};
    zero_columns(p.c, p.c_stride, span.begin, span.end, span.n, max_out, p.dtype);
    if (keep_pre) zero_columns(p.pre, p.pre_stride, span.begin, span.end, span.n, max_out, p.dtype);
    done = span.end;
    if (!spans.empty() && spans.back().end == span.begin && spans.back().n == span.n && spans.back().k == span.k) {
      spans.back().end = span.end;
    } else {
      spans.push_back(span);
    }
  }
  zero_columns(p.c, p.c_stride, done, tokens, 0, max_out, p.dtype);
  if (keep_pre) zero_columns(p.pre, p.pre_stride, done, tokens, 0, max_out, p.dtype);
  multiply_spans(p, spans);
  return {y, pre};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_linear_fwd", TORCH_BOX(&dynabert::binding::elastic_linear_fwd));
}
