// The ops that inference is made of, as functions: for the one that runs them all.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "torch/arguments.h"

namespace dynabert::binding {

// y (T, C), mean, rstd
std::tuple<Tensor, Tensor, Tensor> embed_layer_norm_fwd(const Tensor& input_ids, const Tensor& position_ids,
                                                        std::optional<Tensor> token_type_ids, const Tensor& word,
                                                        const Tensor& position, std::optional<Tensor> token_type,
                                                        const Tensor& weight, const Tensor& bias,
                                                        std::optional<Tensor> rows, std::optional<Tensor> dropout_state,
                                                        double eps, double dropout_p, int64_t dropout_stream,
                                                        int64_t padding_idx);

Tensor elastic_encoder(const Tensor& x, std::vector<Tensor> weights, std::vector<Tensor> position_biases,
                       const Tensor& cu_seqlens, const Tensor& table, int64_t num_groups,
                       std::vector<int64_t> max_heads, std::vector<int64_t> max_neurons, int64_t max_seqlen,
                       double scale, double eps, int64_t activation, bool packed);

Tensor elastic_encoder_int8(const Tensor& x, std::vector<Tensor> weights, std::vector<Tensor> position_biases,
                            const Tensor& cu_seqlens, const Tensor& table, int64_t num_groups,
                            std::vector<int64_t> max_heads, std::vector<int64_t> max_neurons, int64_t max_seqlen,
                            double scale, double eps, int64_t activation);

Tensor classification_head(const Tensor& x, const Tensor& cu_seqlens, std::optional<Tensor> dense_weight,
                           std::optional<Tensor> dense_bias, const Tensor& out_weight, const Tensor& out_bias);

}  // namespace dynabert::binding
