// elastic_encoder on the CPU: every layer's two sub-layers in one call. Between them there is no Python, no dispatcher
// and no allocation, which for a short text cost more than the products themselves.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "torch/inference.h"
#include "torch/sublayers.h"

namespace dynabert::binding {
namespace {

constexpr int64_t kWeightsPerLayer = 12;  // six of the attention, then six of the feed-forward sub-layer

// Working memory of a call, shared by all its layers: the sub-layers' inner results and what is between two sub-layers.
struct WorkingMemory {
  Tensor owner;
  void *qkv, *context, *active, *between;
};

// What follows a sub-layer's last product.
struct EndVectors {
  const void *out_bias, *ln_weight, *ln_bias;
};

// A layer that runs, checked.
struct Layer {
  AttentionOperands attention;
  EndVectors attention_end;
  FfnOperands ffn;
  EndVectors ffn_end;
  Sequences sequences;
  PositionBias bias;
  std::vector<Span> heads, neurons;  // the plan's, in this layer
};

WorkingMemory working_memory(const Tensor& x, int64_t most_columns, int64_t most_neurons, DType dtype) {
  const int64_t tokens = x.size(0), width = x.size(1);
  // A sub-layer's inner results are dead when the next one starts.
  const int64_t inner = std::max(4 * most_columns, most_neurons);
  Tensor owner = torch::stable::new_empty(x, {tokens * (inner + width)});
  void* start = owner.mutable_data_ptr();
  return {owner, start, at(start, tokens * 3 * most_columns, dtype), start, at(start, tokens * inner, dtype)};
}

}  // namespace

Tensor elastic_encoder(const Tensor& x, std::vector<Tensor> weights, std::vector<Tensor> position_biases,
                       const Tensor& cu_seqlens, const Tensor& table, int64_t num_groups,
                       std::vector<int64_t> max_heads, std::vector<int64_t> max_neurons, int64_t max_seqlen,
                       double scale, double eps, int64_t activation, bool packed) {
  const char* op = "elastic_encoder";
  const int64_t layers = static_cast<int64_t>(max_heads.size());
  const Tensor rows =
      check_encoder(op, weights, kWeightsPerLayer, position_biases, table, num_groups, max_heads, max_neurons);
  const DType dtype = check_hidden(op, x);
  const ScalarType type = x.scalar_type();
  const int64_t tokens = x.size(0), width = x.size(1);
  Tensor numbers = table;
  int64_t most_columns = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const Tensor& qkv_bias = weights[kWeightsPerLayer * layer + 1];
    check_shape(op, "qkv_bias", qkv_bias, {-1, 3, -1}, "(H, 3, D)");
    most_columns = std::max(most_columns, std::max<int64_t>(max_heads[layer], 0) * qkv_bias.size(2));
  }
  const int64_t most_neurons = layers == 0 ? 0 : *std::max_element(max_neurons.begin(), max_neurons.end());
  const WorkingMemory memory = working_memory(x, most_columns, std::max<int64_t>(most_neurons, 0), dtype);
  Tensor y = torch::stable::new_empty(x, {tokens, width});
  std::vector<Layer> read;
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (max_heads[layer] == 0 && max_neurons[layer] == 0) continue;
    const int64_t start = num_groups + 1 + 2 * num_groups * layer;
    const Tensor head_counts = torch::stable::narrow(numbers, 0, start, num_groups);
    const Tensor neuron_counts = torch::stable::narrow(numbers, 0, start + num_groups, num_groups);
    const Tensor* w = weights.data() + kWeightsPerLayer * layer;
    const auto vector = [&](int64_t index, const char* name) { return vector_of(op, name, w[index], width, type); };
    Layer& into = read.emplace_back();
    into.heads = read_spans(op, rows, head_counts, "head_counts", 1, max_heads[layer], tokens);
    into.attention = attention_operands(op, x, w[0], w[1], w[2], into.heads, max_heads[layer], packed);
    into.sequences = read_sequences(op, cu_seqlens, into.heads, max_seqlen);
    if (!position_biases.empty()) {
      into.bias = read_position_bias(op, position_biases[layer], type, max_heads[layer], max_seqlen);
    }
    into.attention_end = {vector(3, "out_bias"), vector(4, "ln_weight"), vector(5, "ln_bias")};
    into.neurons = read_spans(op, rows, neuron_counts, "neuron_counts", 1, max_neurons[layer], tokens);
    into.ffn = ffn_operands(op, x, w[6], w[7], w[8], max_neurons[layer], activation, packed);
    into.ffn_end = {vector(9, "out_bias"), vector(10, "ln_weight"), vector(11, "ln_bias")};
  }
  if (read.empty()) return torch::stable::clone(x);
  void* result = y.mutable_data_ptr();
  // PyTorch's products make regions of their own.
  with_crew(cpu::has_gemm(dtype), [&](Crew& crew) {
    SublayerEnd end = {};
    end.dtype = dtype;
    end.x = x.const_data_ptr();
    end.tokens = tokens;
    end.columns = width;
    end.x_stride = x.stride(0);
    end.eps = eps;
    const auto ends_with = [&](const EndVectors& vectors, void* into) {
      end.out_bias = vectors.out_bias;
      end.ln_weight = vectors.ln_weight;
      end.ln_bias = vectors.ln_bias;
      end.projected = end.y = into;
    };
    cpu::AttentionForward attention = {};
    attention.scale = scale;
    attention.qkv = memory.qkv;
    attention.out = memory.context;
    for (const Layer& layer : read) {
      Sequences sequences = layer.sequences;
      attention.position_bias = layer.bias.table;
      attention.bias_head = layer.bias.head;
      attention.bias_centre = layer.bias.centre;
      ends_with(layer.attention_end, memory.between);
      run_attention_sublayer(layer.attention, attention, end, sequences, layer.heads, crew);
      end.x = memory.between;
      end.x_stride = width;
      ends_with(layer.ffn_end, result);
      run_ffn_sublayer(layer.ffn, memory.active, nullptr, end, layer.neurons, crew);
      end.x = result;
    }
  });
  return y;
}

}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_encoder", TORCH_BOX(&dynabert::binding::elastic_encoder));
}
