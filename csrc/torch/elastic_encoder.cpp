// elastic_encoder on the CPU: every layer's two sub-layers in one call. Between them there is no Python and no
// dispatcher, which for a short text cost more than the products themselves.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "torch/sublayers.h"

namespace dynabert::binding {
namespace {

constexpr int64_t kWeightsPerLayer = 12;  // six of the attention, then six of the feed-forward sub-layer

Tensor elastic_encoder(const Tensor& x, std::vector<Tensor> weights, std::vector<Tensor> position_biases,
                       const Tensor& cu_seqlens, const Tensor& table, int64_t num_groups,
                       std::vector<int64_t> max_heads, std::vector<int64_t> max_neurons, int64_t max_seqlen,
                       double scale, double eps, int64_t activation) {
  const char* op = "elastic_encoder";
  const int64_t layers = static_cast<int64_t>(max_heads.size());
  if (max_neurons.size() != max_heads.size()) {
    refuse(op, "max_heads has ", layers, " numbers and max_neurons ", max_neurons.size(), "; allowed: one a layer");
  }
  if (static_cast<int64_t>(weights.size()) != kWeightsPerLayer * layers) {
    refuse(op, weights.size(), " weights for ", layers, " layers; allowed: ", kWeightsPerLayer, " a layer");
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
  const Tensor rows = torch::stable::narrow(numbers, 0, 0, num_groups + 1);
  Tensor y = x;
  bool ran = false;
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (max_heads[layer] == 0 && max_neurons[layer] == 0) continue;
    const int64_t start = num_groups + 1 + 2 * num_groups * layer;
    const Tensor head_counts = torch::stable::narrow(numbers, 0, start, num_groups);
    const Tensor neuron_counts = torch::stable::narrow(numbers, 0, start + num_groups, num_groups);
    const Tensor* w = weights.data() + kWeightsPerLayer * layer;
    std::optional<Tensor> bias;
    if (!position_biases.empty()) bias = position_biases[layer];
    y = std::get<0>(elastic_attention_fwd(y, w[0], w[1], w[2], w[3], w[4], w[5], cu_seqlens, rows, head_counts, bias,
                                          std::nullopt, max_heads[layer], max_seqlen, scale, eps, 0.0, 0.0, 0, false));
    y = std::get<0>(elastic_ffn_fwd(y, w[6], w[7], w[8], w[9], w[10], w[11], rows, neuron_counts, std::nullopt,
                                    max_neurons[layer], activation, eps, 0.0, 0, false));
    ran = true;
  }
  return ran ? y : torch::stable::clone(x);
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_encoder", TORCH_BOX(&dynabert::binding::elastic_encoder));
}
