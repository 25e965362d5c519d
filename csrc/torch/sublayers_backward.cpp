// The backward of elastic_ffn on the CPU, and of what both sub-layers end with: check, allocate, call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/sublayers.h"

namespace dynabert::binding {

void begin_sublayer_backward(const SublayerEndBackward& end, const std::vector<Span>& spans) {
  const int64_t tokens = end.dy.size(0), columns = end.dy.size(1), dy_stride = end.dy.stride(0);
  const void* dy = end.dy.const_data_ptr();
  const bool dropping = end.dropout.threshold != 0;
  const DType wide = wide_dtype(end.dtype);
  cpu::LayerNormBackward shared = {};
  shared.dtype = end.dtype;
  shared.weight = end.ln_weight;
  shared.columns = columns;
  shared.dy_stride = dy_stride;
  shared.x_stride = shared.dx_stride = shared.dropped_stride = columns;
  shared.sums = 3;
  // The cut into chunks depends on the plan alone, and with it the order of every sum.
  shared.rows_per_chunk = std::max<int64_t>(16, (tokens + 63) / 64);
  const std::vector<Span> parts = dropping ? spans : merge_neighbours(spans);
  int64_t chunks = 0;
  for (const Span& span : parts) {
    if (span.count > 0) chunks += (span.end - span.begin + shared.rows_per_chunk - 1) / shared.rows_per_chunk;
  }
  const Tensor partials = torch::stable::new_empty(end.dy, {chunks, shared.sums, columns}, wide_type(end.dtype));
  int64_t chunk = 0, done = 0;
  for (const Span& span : parts) {
    done = span.end;
    if (span.count == 0) {
      for (int64_t row = span.begin; row < span.end; ++row) {
        std::memcpy(at(end.dx, row * columns, end.dtype), at(dy, row * dy_stride, end.dtype),
                    static_cast<size_t>(columns * element_size(end.dtype)));
      }
      continue;
    }
    cpu::LayerNormBackward a = shared;
    a.rows = span.end - span.begin;
    a.dy = at(dy, span.begin * dy_stride, end.dtype);
    a.x = at(end.hidden, span.begin * columns, end.dtype);
    a.mean = at(end.mean, span.begin, wide);
    a.rstd = at(end.rstd, span.begin, wide);
    a.dx = at(end.dx, span.begin * columns, end.dtype);
    a.dropped = dropping ? at(end.dprojected, span.begin * columns, end.dtype) : nullptr;
    a.dropout = of_group(end.dropout, span.group);
    a.partials = at(partials.mutable_data_ptr(), chunk * shared.sums * columns, wide);
    const int64_t here = (a.rows + a.rows_per_chunk - 1) / a.rows_per_chunk;
    torch::stable::parallel_for(0, here, 1,
                                [&](int64_t begin, int64_t last) { cpu::layer_norm_backward(a, begin, last); });
    chunk += here;
  }
  zero_columns(end.dx, columns, done, tokens, 0, columns, end.dtype);
  void* const out[] = {end.dln_weight, end.dln_bias, end.dout_bias};
  cpu::layer_norm_sum_partials(end.dtype, partials.const_data_ptr(), chunks, shared.sums, columns, out);
}

const void* saved_result(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes,
                         ScalarType dtype, const char* letters) {
  check_shape(op, name, tensor, sizes, letters);
  check_dtype(op, name, tensor, "x", dtype);
  if (!tensor.is_contiguous()) refuse(op, name, " is not contiguous; pass what the forward returned");
  return tensor.const_data_ptr();
}

namespace {

using FfnGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

FfnGradients elastic_ffn_bwd(const Tensor& dy, const Tensor& x, const Tensor& in_weight, const Tensor& out_weight,
                             const Tensor& ln_weight, const Tensor& pre, const Tensor& hidden, const Tensor& mean,
                             const Tensor& rstd, const Tensor& rows, const Tensor& neuron_counts,
                             std::optional<Tensor> dropout_state, int64_t max_neurons, int64_t activation,
                             double hidden_dropout, int64_t dropout_stream) {
  const char* op = "elastic_ffn_bwd";
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type(), wide = wide_type(dtype);
  const int64_t tokens = x.size(0), width = x.size(1);
  check_shape(op, "dy", dy, {tokens, width}, "(T, C)");
  check_dtype(op, "dy", dy, "x", type);
  check_last_stride(op, "dy", dy);
  check_shape(op, "in_weight", in_weight, {-1, width}, "(F, C)");
  check_weight(op, "in_weight", in_weight, x);
  const int64_t neurons = in_weight.size(0);
  if (max_neurons < 0 || max_neurons > neurons) {
    refuse(op, "max_neurons is ", max_neurons, "; allowed: 0 to in_weight's ", neurons, " rows");
  }
  check_shape(op, "out_weight", out_weight, {width, neurons}, "(C, F)");
  check_weight(op, "out_weight", out_weight, x);
  const std::vector<Span> spans = read_spans(op, rows, neuron_counts, "neuron_counts", 1, max_neurons, tokens);

  Tensor dx = torch::stable::new_empty(x, {tokens, width});
  Tensor din_weight = torch::stable::new_empty(in_weight, {neurons, width});
  Tensor din_bias = torch::stable::new_empty(in_weight, {neurons});
  Tensor dout_weight = torch::stable::new_empty(out_weight, {width, neurons});
  Tensor dout_bias = torch::stable::new_empty(out_weight, {width});
  Tensor dln_weight = torch::stable::new_empty(ln_weight, {width});
  Tensor dln_bias = torch::stable::new_empty(ln_weight, {width});
  const Dropout dropout = dropout_of(op, dropout_state, hidden_dropout, dropout_stream);
  Tensor dprojected = dropout.threshold != 0 ? torch::stable::new_empty(x, {tokens, width}) : dx;
  Tensor dz = torch::stable::new_empty(x, {tokens, max_neurons});
  Tensor active = torch::stable::new_empty(x, {tokens, max_neurons});

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

  const std::vector<ProductSpan> in_spans = product_spans(spans, 1, 0, 0, width);
  const std::vector<ProductSpan> out_spans = product_spans(spans, 0, width, 1, 0);
  InputGradient out = {};
  out.dtype = dtype;
  out.a = dprojected.const_data_ptr();
  out.a_stride = width;
  out.b = out_weight.const_data_ptr();
  out.b_stride = out_weight.stride(0);
  out.pre = saved_result(op, "pre", pre, {tokens, max_neurons}, type, "(T, max_neurons)");
  out.pre_stride = max_neurons;
  out.c = dz.mutable_data_ptr();
  out.c_stride = max_neurons;
  out.activated = active.mutable_data_ptr();
  out.activated_stride = max_neurons;
  out.activation = activation_of(op, activation);
  input_gradient(out, out_spans);

  weight_gradient({.dtype = dtype,
                   .dy = out.a,
                   .x = out.activated,
                   .dw = dout_weight.mutable_data_ptr(),
                   .db = nullptr,
                   .dy_stride = width,
                   .x_stride = max_neurons,
                   .dw_stride = neurons,
                   .rows = width,
                   .columns = neurons},
                  out_spans);
  weight_gradient({.dtype = dtype,
                   .dy = out.c,
                   .x = x.const_data_ptr(),
                   .dw = din_weight.mutable_data_ptr(),
                   .db = din_bias.mutable_data_ptr(),
                   .dy_stride = max_neurons,
                   .x_stride = x.stride(0),
                   .dw_stride = width,
                   .rows = neurons,
                   .columns = width},
                  in_spans);

  InputGradient into = {};
  into.dtype = dtype;
  into.a = out.c;
  into.a_stride = max_neurons;
  into.b = in_weight.const_data_ptr();
  into.b_stride = in_weight.stride(0);
  into.added = dx.const_data_ptr();
  into.added_stride = width;
  into.c = dx.mutable_data_ptr();
  into.c_stride = width;
  input_gradient(into, in_spans);
  return {dx, din_weight, din_bias, dout_weight, dout_bias, dln_weight, dln_bias};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_ffn_bwd", TORCH_BOX(&dynabert::binding::elastic_ffn_bwd));
}
