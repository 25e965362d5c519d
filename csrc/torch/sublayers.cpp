// elastic_ffn on the CPU: check, allocate, call; and what both sub-layers share.
#include "torch/sublayers.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace dynabert::binding {
namespace {

// Rows of neighbours that both run the layer, or both skip it, are one span: what follows the products is the same at
// every width. So a batch of many short texts of different widths is still shared by all threads.
std::vector<Span> merge_active(std::vector<Span> spans) {
  for (Span& span : spans) span.count = span.count > 0 ? 1 : 0;
  return merge_neighbours(spans);
}

}  // namespace

void finish_sublayer(const SublayerEnd& end, const std::vector<Span>& spans, Crew& crew) {
  const int64_t tokens = end.tokens, columns = end.columns, x_stride = end.x_stride;
  const void* x = end.x;
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
  for (const Span& span : dropping ? spans : merge_active(spans)) {
    done = span.end;
    if (span.count == 0) {
      crew.share(span.end - span.begin, row_grain(columns), [&](int64_t begin, int64_t last) {
        for (int64_t row = span.begin + begin; row < span.begin + last; ++row) {
          std::memcpy(at(end.y, row * columns, end.dtype), at(x, row * x_stride, end.dtype),
                      static_cast<size_t>(columns * element_size(end.dtype)));
        }
      });
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
    crew.share(span.end - span.begin, row_grain(columns),
               [&](int64_t begin, int64_t last) { cpu::layer_norm_forward(a, begin, last); });
  }
  if (done < tokens) {
    crew.share(1, 1, [&](int64_t, int64_t) { zero_columns(end.y, columns, done, tokens, 0, columns, end.dtype); });
  }
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

WeightMatrix packed_matrix(const char* op, const char* name, const Tensor& packed, const Tensor& x, int64_t outputs,
                           int64_t inputs) {
  check_dtype(op, name, packed, "x", x.scalar_type());
  const DType dtype = float_dtype(op, name, packed);
  const int64_t panel = cpu::packed_panel(dtype), pair = dtype == DType::kBFloat16 ? 2 : 1;
  if (panel == 0) {
    refuse(op, name, " is packed, but on this processor weights of this dtype are not; pass the plain weights");
  }
  const int64_t panels = (outputs + panel - 1) / panel, units = (inputs + pair - 1) / pair;
  if (packed.dim() != 4 || packed.size(0) != panels || packed.size(1) != units || packed.size(2) != panel ||
      packed.size(3) != pair || !packed.is_contiguous()) {
    refuse(op, name, " has shape ", shape_of(packed), "; allowed: (", panels, ", ", units, ", ", panel, ", ", pair,
           "), contiguous: ", outputs, " outputs of ", inputs,
           " inputs, packed for the instruction set in use; pack it anew");
  }
  return {packed.const_data_ptr(), 0, inputs};
}

Tensor check_encoder(const char* op, const std::vector<Tensor>& weights, int64_t weights_per_layer,
                     const std::vector<Tensor>& position_biases, const Tensor& table, int64_t num_groups,
                     const std::vector<int64_t>& max_heads, const std::vector<int64_t>& max_neurons) {
  const int64_t layers = static_cast<int64_t>(max_heads.size());
  if (max_neurons.size() != max_heads.size()) {
    refuse(op, "max_heads has ", layers, " numbers and max_neurons ", max_neurons.size(), "; allowed: one a layer");
  }
  if (static_cast<int64_t>(weights.size()) != weights_per_layer * layers) {
    refuse(op, weights.size(), " weights for ", layers, " layers; allowed: ", weights_per_layer, " a layer");
  }
  if (!position_biases.empty() && static_cast<int64_t>(position_biases.size()) != layers) {
    refuse(op, position_biases.size(), " position biases for ", layers, " layers; allowed: one a layer, or none");
  }
  int32_vector(op, "table", table);
  if (num_groups < 1 || table.size(0) != num_groups + 1 + 2 * num_groups * layers) {
    refuse(op, "table has ", table.size(0), " numbers for ", num_groups, " groups and ", layers,
           " layers; allowed: G + 1 + 2 G L");
  }
  Tensor numbers = table;
  return torch::stable::narrow(numbers, 0, 0, num_groups + 1);
}

FfnOperands ffn_operands(const char* op, const Tensor& x, const Tensor& in_weight, const Tensor& in_bias,
                         const Tensor& out_weight, int64_t max_neurons, int64_t activation, bool packed) {
  FfnOperands operands = {};
  const int64_t width = x.size(1);
  int64_t neurons = 0;
  if (packed) {  // the bias knows the shape
    check_shape(op, "in_bias", in_bias, {-1}, "(F,)");
    neurons = in_bias.size(0);
    operands.in = packed_matrix(op, "in_weight", in_weight, x, neurons, width);
    operands.out = packed_matrix(op, "out_weight", out_weight, x, width, neurons);
  } else {
    check_shape(op, "in_weight", in_weight, {-1, width}, "(F, C)");
    check_weight(op, "in_weight", in_weight, x);
    neurons = in_weight.size(0);
    check_shape(op, "out_weight", out_weight, {width, neurons}, "(C, F)");
    check_weight(op, "out_weight", out_weight, x);
    operands.in = {in_weight.const_data_ptr(), in_weight.stride(0), 0};
    operands.out = {out_weight.const_data_ptr(), out_weight.stride(0), 0};
  }
  if (max_neurons < 0 || max_neurons > neurons) {
    refuse(op, "max_neurons is ", max_neurons, "; allowed: 0 to in_weight's ", neurons, " rows");
  }
  operands.in_bias = vector_of(op, "in_bias", in_bias, neurons, x.scalar_type(), "(F,)");
  operands.max_neurons = max_neurons;
  operands.activation = activation_of(op, activation);
  return operands;
}

void run_ffn_sublayer(const FfnOperands& operands, void* active, void* pre, const SublayerEnd& end,
                      const std::vector<Span>& spans, Crew& crew) {
  Product into = {};
  into.dtype = end.dtype;
  into.a = end.x;
  into.a_stride = end.x_stride;
  into.b = operands.in.data;
  into.b_stride = operands.in.stride;
  into.packed_inputs = operands.in.packed_inputs;
  into.bias = operands.in_bias;
  into.c = active;
  into.c_stride = operands.max_neurons;
  into.pre = pre;
  into.pre_stride = operands.max_neurons;
  into.activation = operands.activation;
  multiply_spans(into, product_spans(spans, 1, 0, 0, end.columns), crew);

  Product out = {};
  out.dtype = end.dtype;
  out.a = active;
  out.a_stride = operands.max_neurons;
  out.b = operands.out.data;
  out.b_stride = operands.out.stride;
  out.packed_inputs = operands.out.packed_inputs;
  out.c = end.projected;
  out.c_stride = end.columns;
  multiply_spans(out, product_spans(spans, 0, end.columns, 1, 0), crew);
  finish_sublayer(end, spans, crew);
}

namespace {

// y, pre, hidden, mean, rstd
using FfnOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FfnOutputs elastic_ffn_fwd(const Tensor& x, const Tensor& in_weight, const Tensor& in_bias, const Tensor& out_weight,
                           const Tensor& out_bias, const Tensor& ln_weight, const Tensor& ln_bias, const Tensor& rows,
                           const Tensor& neuron_counts, std::optional<Tensor> dropout_state, int64_t max_neurons,
                           int64_t activation, double eps, double hidden_dropout, int64_t dropout_stream, bool save) {
  const char* op = "elastic_ffn_fwd";
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type();
  const int64_t tokens = x.size(0), width = x.size(1);
  const FfnOperands operands = ffn_operands(op, x, in_weight, in_bias, out_weight, max_neurons, activation, false);
  const std::vector<Span> spans = read_spans(op, rows, neuron_counts, "neuron_counts", 1, max_neurons, tokens);

  const ScalarType wide = wide_type(dtype);
  Tensor y = torch::stable::new_empty(x, {tokens, width});
  Tensor active = torch::stable::new_empty(x, {tokens, max_neurons});
  Tensor pre = save ? torch::stable::new_empty(x, {tokens, max_neurons}) : nothing(type);
  Tensor hidden = save ? torch::stable::new_empty(x, {tokens, width}) : nothing(type);
  Tensor mean = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);
  Tensor rstd = save ? torch::stable::new_empty(x, {tokens}, wide) : nothing(wide);
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
                           .dropout = dropout_of(op, dropout_state, hidden_dropout, dropout_stream)};
  Crew crew;
  run_ffn_sublayer(operands, active.mutable_data_ptr(), save ? pre.mutable_data_ptr() : nullptr, end, spans, crew);
  return {y, pre, hidden, mean, rstd};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_ffn_fwd", TORCH_BOX(&dynabert::binding::elastic_ffn_fwd));
}
