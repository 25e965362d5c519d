// elastic_classifier on the CPU: embeddings, layers and head in one call. Each of them is an op of its own too; here
// nothing lies between them, which a short text at a small width would wait for.
#include <torch/csrc/stable/library.h>

#include "torch/inference.h"

namespace dynabert::binding {
namespace {

enum Form : int64_t { kPlain = 0, kPacked = 1, kInt8 = 2 };

Tensor elastic_classifier(const Tensor& input_ids, const Tensor& position_ids, std::optional<Tensor> token_type_ids,
                          const Tensor& word, const Tensor& position, std::optional<Tensor> token_type,
                          const Tensor& norm_weight, const Tensor& norm_bias, std::vector<Tensor> weights,
                          std::vector<Tensor> position_biases, std::optional<Tensor> dense_weight,
                          std::optional<Tensor> dense_bias, const Tensor& out_weight, const Tensor& out_bias,
                          const Tensor& cu_seqlens, const Tensor& table, int64_t num_groups,
                          std::vector<int64_t> max_heads, std::vector<int64_t> max_neurons, int64_t max_seqlen,
                          double scale, double eps, int64_t activation, int64_t form) {
  const Tensor x =
      std::get<0>(embed_layer_norm_fwd(input_ids, position_ids, token_type_ids, word, position, token_type, norm_weight,
                                       norm_bias, std::nullopt, std::nullopt, eps, 0.0, 0, -1));
  Tensor y = x;
  if (form == kInt8) {
    y = elastic_encoder_int8(x, std::move(weights), std::move(position_biases), cu_seqlens, table, num_groups,
                             std::move(max_heads), std::move(max_neurons), max_seqlen, scale, eps, activation);
  } else if (form == kPlain || form == kPacked) {
    y = elastic_encoder(x, std::move(weights), std::move(position_biases), cu_seqlens, table, num_groups,
                        std::move(max_heads), std::move(max_neurons), max_seqlen, scale, eps, activation,
                        form == kPacked);
  } else {
    refuse("elastic_classifier", "form is ", form, "; allowed: 0 (plain), 1 (packed), 2 (int8)");
  }
  // Rows past the plan's are zeros, and a text there would be answered by the head's bias alone.
  const int32_t* starts = int32_vector("elastic_classifier", "cu_seqlens", cu_seqlens);
  const int32_t* borders = int32_vector("elastic_classifier", "the plan's table", table);
  if (num_groups >= 0 && table.size(0) > num_groups && cu_seqlens.size(0) > 0 &&
      starts[cu_seqlens.size(0) - 1] > borders[num_groups]) {
    refuse("elastic_classifier", "the batch has ", starts[cu_seqlens.size(0) - 1], " tokens and the plan's groups ",
           borders[num_groups], "; allowed: a plan of this batch");
  }
  return classification_head(y, cu_seqlens, dense_weight, dense_bias, out_weight, out_bias);
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("elastic_classifier", TORCH_BOX(&dynabert::binding::elastic_classifier));
}
