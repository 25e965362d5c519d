// elastic_encoder_int8 on the CPU: the layers of elastic_encoder with weights in int8. The products' inputs are
// quantised on the way in; attention, residuals and LayerNorm have x's dtype.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "torch/attention.h"
#include "torch/int8_linear.h"
#include "torch/inference.h"
#include "torch/sublayers.h"

namespace dynabert::binding {
namespace {

// Four linear maps of four tensors, and two LayerNorms of two.
constexpr int64_t kWeightsPerLayer = 20;

struct Norm {
  const void* weight;
  const void* bias;
};

struct Layer {
  Int8Linear qkv, attention, ffn_in, ffn_out;
  Norm attention_norm, ffn_norm;
  int64_t head_size;
  std::vector<Span> heads, neurons;  // the plan's, in this layer
  Sequences sequences;
  PositionBias bias;
};

Layer read_layer(const char* op, const Tensor* w, const Tensor& x, ScalarType type, int64_t max_heads,
                 int64_t max_neurons) {
  Layer layer = {};
  const int64_t width = x.size(1);
  const Tensor &qkv_bias = w[3], &ffn_in_bias = w[13], &ffn_out_weight = w[14];
  check_shape(op, "qkv_bias", qkv_bias, {-1, 3, -1}, "(H, 3, D)");
  const int64_t heads = qkv_bias.size(0);
  layer.head_size = qkv_bias.size(2);
  if (layer.head_size == 0) refuse(op, "qkv_bias has shape ", shape_of(qkv_bias), "; allowed: D at least 1");
  if (max_heads < 0 || max_heads > heads) {
    refuse(op, "max_heads is ", max_heads, "; allowed: 0 to qkv_bias's ", heads, " heads");
  }
  check_shape(op, "ffn_in_bias", ffn_in_bias, {-1}, "(F,)");
  const int64_t neurons = ffn_in_bias.size(0);
  if (max_neurons < 0 || max_neurons > neurons) {
    refuse(op, "max_neurons is ", max_neurons, "; allowed: 0 to ffn_in_bias's ", neurons, " neurons");
  }
  check_shape(op, "ffn_out_weight", ffn_out_weight, {-1, -1, -1, -1, -1}, "(panels, chunks, units, 32, 4)");
  const int64_t chunk = std::max<int64_t>(1, ffn_out_weight.size(2)) * cpu::kInt8Unit;
  layer.qkv = read_int8_linear(op, DYNABERT_INT8_NAMES("qkv"), w, width, width, type);
  layer.attention =
      read_int8_linear(op, DYNABERT_INT8_NAMES("attention"), w + 4, heads * layer.head_size, layer.head_size, type);
  layer.attention_norm = {vector_of(op, "attention_norm_weight", w[8], width, type),
                          vector_of(op, "attention_norm_bias", w[9], width, type)};
  layer.ffn_in = read_int8_linear(op, DYNABERT_INT8_NAMES("ffn_in"), w + 10, width, width, type);
  layer.ffn_out = read_int8_linear(op, DYNABERT_INT8_NAMES("ffn_out"), w + 14, neurons, chunk, type);
  layer.ffn_norm = {vector_of(op, "ffn_norm_weight", w[18], width, type),
                    vector_of(op, "ffn_norm_bias", w[19], width, type)};
  for (const auto& [name, linear] : {std::pair{"attention", &layer.attention}, std::pair{"ffn_out", &layer.ffn_out}}) {
    if (linear->outputs != width) refuse(op, name, "_bias has ", linear->outputs, " numbers; x has ", width);
  }
  return layer;
}

// Working memory of a call, shared by all its layers, see elastic_encoder; and the rows as bytes.
struct WorkingMemory {
  Tensor owner;
  void *qkv, *context, *active, *between;
  Int8Activations activations;
};

WorkingMemory working_memory(const Tensor& x, int64_t most_columns, int64_t most_neurons, int64_t row_bytes,
                             DType dtype) {
  const int64_t tokens = x.size(0), width = x.size(1), inner = std::max(4 * most_columns, most_neurons);
  Tensor owner = torch::stable::new_empty(x, {tokens * (inner + width)});
  void* start = owner.mutable_data_ptr();
  return {.owner = owner,
          .qkv = start,
          .context = at(start, tokens * 3 * most_columns, dtype),
          .active = start,
          .between = at(start, tokens * inner, dtype),
          .activations = Int8Activations(x, tokens, row_bytes)};
}

}  // namespace

Tensor elastic_encoder_int8(const Tensor& x, std::vector<Tensor> weights, std::vector<Tensor> position_biases,
                            const Tensor& cu_seqlens, const Tensor& table, int64_t num_groups,
                            std::vector<int64_t> max_heads, std::vector<int64_t> max_neurons, int64_t max_seqlen,
                            double scale, double eps, int64_t activation) {
  const char* op = "elastic_encoder_int8";
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type();
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    refuse(op, "x is ", torch::headeronly::toString(type), "; allowed: float32, bfloat16");
  }
  const int64_t layers = static_cast<int64_t>(max_heads.size()), tokens = x.size(0), width = x.size(1);
  const Tensor rows =
      check_encoder(op, weights, kWeightsPerLayer, position_biases, table, num_groups, max_heads, max_neurons);
  const Activation act = activation_of(op, activation);
  Tensor numbers = table;

  std::vector<Layer> read(static_cast<size_t>(layers));
  int64_t most_columns = 0, most_neurons = 0, row_bytes = 0;
  bool runs = false;
  for (int64_t l = 0; l < layers; ++l) {
    if (max_heads[l] == 0 && max_neurons[l] == 0) continue;
    runs = true;
    Layer& layer = read[l] =
        read_layer(op, weights.data() + kWeightsPerLayer * l, x, type, max_heads[l], max_neurons[l]);
    const int64_t start = num_groups + 1 + 2 * num_groups * l;
    layer.heads = read_spans(op, rows, torch::stable::narrow(numbers, 0, start, num_groups), "head_counts", 1,
                             max_heads[l], tokens);
    layer.neurons = read_spans(op, rows, torch::stable::narrow(numbers, 0, start + num_groups, num_groups),
                               "neuron_counts", 1, max_neurons[l], tokens);
    layer.sequences = read_sequences(op, cu_seqlens, layer.heads, max_seqlen);
    if (!position_biases.empty()) {
      layer.bias = read_position_bias(op, position_biases[l], type, max_heads[l], max_seqlen);
    }
    most_columns = std::max(most_columns, max_heads[l] * layer.head_size);
    most_neurons = std::max(most_neurons, max_neurons[l]);
    for (const Int8Linear* linear : {&layer.qkv, &layer.ffn_in}) {
      row_bytes = std::max(row_bytes, linear->cut.bytes(width));
    }
    row_bytes = std::max(row_bytes, layer.attention.cut.bytes(max_heads[l] * layer.head_size));
    row_bytes = std::max(row_bytes, layer.ffn_out.cut.bytes(max_neurons[l]));
  }
  if (!runs) return torch::stable::clone(x);
  WorkingMemory memory = working_memory(x, most_columns, most_neurons, row_bytes, dtype);
  Tensor y = torch::stable::new_empty(x, {tokens, width});
  void* result = y.mutable_data_ptr();
  SublayerEnd ends = {};
  ends.dtype = dtype;
  ends.x = x.const_data_ptr();
  ends.tokens = tokens;
  ends.columns = width;
  ends.x_stride = x.stride(0);
  ends.eps = eps;
  cpu::AttentionForward attended = {};
  attended.dtype = dtype;
  attended.scale = scale;
  attended.qkv = memory.qkv;
  attended.out = memory.context;
  with_crew(true, [&](Crew& crew) {
    SublayerEnd end = ends;
    cpu::AttentionForward attention = attended;
    for (int64_t l = 0; l < layers; ++l) {
      if (max_heads[l] == 0 && max_neurons[l] == 0) continue;
      const Layer& layer = read[l];
      const int64_t size = layer.head_size, columns = max_heads[l] * size;
      Sequences sequences = layer.sequences;
      attention.position_bias = layer.bias.table;
      attention.bias_head = layer.bias.head;
      attention.bias_centre = layer.bias.centre;
      multiply_int8(layer.qkv, dtype, end.x, end.x_stride, memory.qkv, 3 * columns, Activation::kNone,
                    product_spans(layer.heads, 3 * size, 0, 0, width), memory.activations, crew);
      attention.qkv_row = 3 * columns;
      attention.qkv_head = 3 * size;
      attention.qkv_part = attention.out_head = attention.head_size = size;
      attention.out_row = columns;
      attend(attention, sequences, layer.heads, crew);
      end.projected = end.y = memory.between;
      multiply_int8(layer.attention, dtype, memory.context, columns, end.projected, width, Activation::kNone,
                    product_spans(layer.heads, 0, width, size, 0), memory.activations, crew);
      end.ln_weight = layer.attention_norm.weight;
      end.ln_bias = layer.attention_norm.bias;
      finish_sublayer(end, layer.heads, crew);

      end.x = memory.between;
      end.x_stride = width;
      multiply_int8(layer.ffn_in, dtype, end.x, width, memory.active, max_neurons[l], act,
                    product_spans(layer.neurons, 1, 0, 0, width), memory.activations, crew);
      end.projected = end.y = result;
      multiply_int8(layer.ffn_out, dtype, memory.active, max_neurons[l], end.projected, width, Activation::kNone,
                    product_spans(layer.neurons, 0, width, 1, 0), memory.activations, crew);
      end.ln_weight = layer.ffn_norm.weight;
      end.ln_bias = layer.ffn_norm.bias;
      finish_sublayer(end, layer.neurons, crew);
      end.x = result;
    }
  });
  return y;
}

}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_encoder_int8", TORCH_BOX(&dynabert::binding::elastic_encoder_int8));
}
