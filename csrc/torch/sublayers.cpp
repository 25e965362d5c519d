// elastic_ffn on the CPU: check, allocate, call; and what both sub-layers share.
#include "torch/sublayers.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

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

FfnOutputs elastic_ffn_fwd(const Tensor& x, const Tensor& in_weight, const Tensor& in_bias, const Tensor& out_weight,
                           const Tensor& out_bias, const Tensor& ln_weight, const Tensor& ln_bias, const Tensor& rows,
                           const Tensor& neuron_counts, std::optional<Tensor> dropout_state, int64_t max_neurons,
                           int64_t activation, double eps, double hidden_dropout, int64_t dropout_stream, bool save) {
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

}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_ffn_fwd", TORCH_BOX(&dynabert::binding::elastic_ffn_fwd));
}
