// What both sub-layers share: their checks, and their end, which is dropout, residual and LayerNorm of the projected
// rows and the rows that skip the layer.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/layer_norm.h"
#include "torch/arguments.h"
#include "torch/matmul.h"

namespace dynabert::binding {

// The spans with a count, equal neighbours merged: n = count * n_per_count, or fixed_n where that is 0; k likewise.
std::vector<ProductSpan> product_spans(const std::vector<Span>& spans, int64_t n_per_count, int64_t fixed_n,
                                       int64_t k_per_count, int64_t fixed_k);

DType check_hidden(const char* op, const Tensor& x);
void check_weight(const char* op, const char* name, const Tensor& weight, const Tensor& x);

// The numbers of a result that the forward saved, which are contiguous.
const void* saved_result(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes,
                         ScalarType dtype, const char* letters);

struct SublayerEnd {
  const char* op;
  DType dtype;
  const Tensor& x;        // (T, C), the residual
  const void* out_bias;   // (C)
  const void* ln_weight;  // (C)
  const void* ln_bias;    // (C)
  void* projected;        // (T, C): the product without its bias; may be y or hidden
  void* y;                // (T, C)
  void* hidden;           // (T, C) or null
  void* mean;             // (T) or null
  void* rstd;
  double eps;
  Dropout dropout;
};

// y = LayerNorm(x + dropout(projected + out_bias)) for spans with a count, y = x for spans without, 0 for other rows.
void finish_sublayer(const SublayerEnd& end, const std::vector<Span>& spans);

struct SublayerEndBackward {
  const char* op;
  DType dtype;
  const Tensor& dy;       // (T, C)
  const void* hidden;     // (T, C), contiguous, as the forward saved it
  const void* ln_weight;  // (C)
  const void* mean;       // (T)
  const void* rstd;       // (T)
  Dropout dropout;
  void* dx;          // (T, C), contiguous
  void* dprojected;  // (T, C), contiguous; without dropout it is dx
  void* dln_weight;  // (C)
  void* dln_bias;    // (C)
  void* dout_bias;   // (C)
};

// Spans with a count: dx is the gradient of the sum before LayerNorm, which is the residual's share of x's gradient;
// dprojected is dx times the dropout factor, the gradient of the product. Spans without a count: dx = dy. Other rows:
// dx = 0. Of dprojected only spans with a count are written. The three vectors are sums over all active rows.
void begin_sublayer_backward(const SublayerEndBackward& end, const std::vector<Span>& spans);

// The two sub-layers, as registered; `elastic_encoder` calls them without the dispatcher.

// y, qkv, context, lse, hidden, mean, rstd
using AttentionOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

AttentionOutputs elastic_attention_fwd(const Tensor& x, const Tensor& qkv_weight, const Tensor& qkv_bias,
                                       const Tensor& out_weight, const Tensor& out_bias, const Tensor& ln_weight,
                                       const Tensor& ln_bias, const Tensor& cu_seqlens, const Tensor& rows,
                                       const Tensor& head_counts, std::optional<Tensor> position_bias,
                                       std::optional<Tensor> dropout_state, int64_t max_heads, int64_t max_seqlen,
                                       double scale, double eps, double attention_dropout, double hidden_dropout,
                                       int64_t dropout_stream, bool save);

// y, pre, hidden, mean, rstd
using FfnOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FfnOutputs elastic_ffn_fwd(const Tensor& x, const Tensor& in_weight, const Tensor& in_bias, const Tensor& out_weight,
                           const Tensor& out_bias, const Tensor& ln_weight, const Tensor& ln_bias, const Tensor& rows,
                           const Tensor& neuron_counts, std::optional<Tensor> dropout_state, int64_t max_neurons,
                           int64_t activation, double eps, double hidden_dropout, int64_t dropout_stream, bool save);

}  // namespace dynabert::binding
