// elastic_linear on the CPU: check, allocate, call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/matmul.h"

namespace dynabert::binding {
namespace {

struct Bounds {
  int64_t out, in;
};

DType check_operands(const char* op, const Tensor& x, const Tensor& weight, Bounds most) {
  check_shape(op, "x", x, {-1, -1}, "(T, K)");
  check_shape(op, "weight", weight, {-1, -1}, "(N, K)");
  const DType dtype = float_dtype(op, "x", x);
  check_dtype(op, "weight", weight, "x", x.scalar_type());
  check_last_stride(op, "x", x);
  check_last_stride(op, "weight", weight);
  if (most.out < 0 || most.out > weight.size(0)) {
    refuse(op, "max_out is ", most.out, "; allowed: 0 to the weight's ", weight.size(0), " rows");
  }
  if (most.in < 0 || most.in > weight.size(1) || most.in > x.size(1)) {
    refuse(op, "max_in is ", most.in, "; allowed: 0 to the weight's ", weight.size(1), " and x's ", x.size(1),
           " columns");
  }
  return dtype;
}

// The groups that have rows, with their outputs and inputs; equal neighbours are one.
std::vector<ProductSpan> linear_spans(const char* op, const Tensor& rows, const std::optional<Tensor>& out_counts,
                                      const std::optional<Tensor>& in_counts, int64_t out_unit, int64_t in_unit,
                                      Bounds most, int64_t tokens) {
  const std::vector<Span> outs = read_spans(op, rows, out_counts, "out_counts", out_unit, most.out, tokens);
  const std::vector<Span> ins = read_spans(op, rows, in_counts, "in_counts", in_unit, most.in, tokens);
  std::vector<ProductSpan> spans;
  for (size_t i = 0; i < outs.size(); ++i) {
    const ProductSpan span = {outs[i].begin, outs[i].end, outs[i].count, ins[i].count};
    if (!spans.empty() && spans.back().end == span.begin && spans.back().n == span.n && spans.back().k == span.k) {
      spans.back().end = span.end;
    } else {
      spans.push_back(span);
    }
  }
  return spans;
}

// Zeros in the columns of each row from its span's width up to `columns`, and in the rows of no span.
void zero_beyond(void* base, int64_t columns, int64_t tokens, const std::vector<ProductSpan>& spans,
                 int64_t ProductSpan::* width, DType dtype) {
  int64_t done = 0;
  for (const ProductSpan& span : spans) {
    zero_columns(base, columns, span.begin, span.end, span.*width, columns, dtype);
    done = span.end;
  }
  zero_columns(base, columns, done, tokens, 0, columns, dtype);
}

std::tuple<Tensor, Tensor> elastic_linear_fwd(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                                              std::optional<Tensor> residual, const Tensor& rows,
                                              std::optional<Tensor> out_counts, std::optional<Tensor> in_counts,
                                              int64_t out_unit, int64_t in_unit, int64_t max_out, int64_t max_in,
                                              int64_t activation, bool save) {
  const char* op = "elastic_linear_fwd";
  const Bounds most = {max_out, max_in};
  Product p = {};
  p.dtype = check_operands(op, x, weight, most);
  const int64_t tokens = x.size(0);
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
  const std::vector<ProductSpan> spans = linear_spans(op, rows, out_counts, in_counts, out_unit, in_unit, most, tokens);

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

  zero_beyond(p.c, max_out, tokens, spans, &ProductSpan::n, p.dtype);
  if (keep_pre) zero_beyond(p.pre, max_out, tokens, spans, &ProductSpan::n, p.dtype);
  Crew crew;
  multiply_spans(p, spans, crew);
  return {y, pre};
}

std::tuple<Tensor, Tensor, Tensor> elastic_linear_bwd(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                      const Tensor& pre, const Tensor& rows,
                                                      std::optional<Tensor> out_counts, std::optional<Tensor> in_counts,
                                                      int64_t out_unit, int64_t in_unit, int64_t max_out,
                                                      int64_t max_in, int64_t activation, bool has_bias) {
  const char* op = "elastic_linear_bwd";
  const Bounds most = {max_out, max_in};
  const DType dtype = check_operands(op, x, weight, most);
  const ScalarType type = x.scalar_type();
  const int64_t tokens = x.size(0);
  check_shape(op, "dy", dy, {tokens, max_out}, "(T, max_out)");
  check_dtype(op, "dy", dy, "x", type);
  check_last_stride(op, "dy", dy);
  const std::vector<ProductSpan> spans = linear_spans(op, rows, out_counts, in_counts, out_unit, in_unit, most, tokens);
  const Activation act = activation_of(op, activation);

  Tensor dx = torch::stable::new_empty(x, {tokens, x.size(1)});
  Tensor dw = torch::stable::new_empty(weight, {weight.size(0), weight.size(1)});
  Tensor db = has_bias ? torch::stable::new_empty(weight, {weight.size(0)}) : nothing(type);
  const void* dz = dy.const_data_ptr();
  int64_t dz_stride = dy.stride(0);
  std::optional<Tensor> own;  // dy * act'(pre) in the active part, which is all that the products read
  if (act != Activation::kNone) {
    check_shape(op, "pre", pre, {tokens, max_out}, "(T, max_out)");
    check_dtype(op, "pre", pre, "x", type);
    check_last_stride(op, "pre", pre);
    own = torch::stable::new_empty(x, {tokens, max_out});
    cpu::RowGradient g = {};
    g.dtype = dtype;
    g.gradient_stride = dz_stride;
    g.pre_stride = pre.stride(0);
    g.c_stride = max_out;
    g.activation = act;
    for (const ProductSpan& span : spans) {
      g.gradient = at(dz, span.begin * g.gradient_stride, dtype);
      g.pre = at(pre.const_data_ptr(), span.begin * g.pre_stride, dtype);
      g.c = at(own->mutable_data_ptr(), span.begin * g.c_stride, dtype);
      g.columns = span.n;
      torch::stable::parallel_for(0, span.end - span.begin, row_grain(span.n),
                                  [&](int64_t begin, int64_t end) { cpu::run_gradient(g, begin, end); });
    }
    dz = own->const_data_ptr();
    dz_stride = max_out;
  }

  InputGradient to_x = {};
  to_x.dtype = dtype;
  to_x.a = dz;
  to_x.a_stride = dz_stride;
  to_x.b = weight.const_data_ptr();
  to_x.b_stride = weight.stride(0);
  to_x.c = dx.mutable_data_ptr();
  to_x.c_stride = x.size(1);
  zero_beyond(to_x.c, x.size(1), tokens, spans, &ProductSpan::k, dtype);
  input_gradient(to_x, spans);
  weight_gradient({.dtype = dtype,
                   .dy = dz,
                   .x = x.const_data_ptr(),
                   .dw = dw.mutable_data_ptr(),
                   .db = has_bias ? db.mutable_data_ptr() : nullptr,
                   .dy_stride = dz_stride,
                   .x_stride = x.stride(0),
                   .dw_stride = weight.size(1),
                   .rows = weight.size(0),
                   .columns = weight.size(1)},
                  spans);
  return {dx, dw, db};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_linear_fwd", TORCH_BOX(&dynabert::binding::elastic_linear_fwd));
  m.impl("elastic_linear_bwd", TORCH_BOX(&dynabert::binding::elastic_linear_bwd));
}
