// The two sub-layers: what they share, which is their checks and their end (dropout, residual and LayerNorm of the
// projected rows, and the rows that skip the layer), and each as a function of operands that are checked and of memory
// that is there, for the ops and for the whole encoder.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/layer_norm.h"
#include "torch/arguments.h"
#include "torch/attention.h"
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
  DType dtype;
  const void* x;  // (T, C), the residual
  int64_t tokens, columns, x_stride;
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
void finish_sublayer(const SublayerEnd& end, const std::vector<Span>& spans, Crew& crew);

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

// A weight as a product reads it.
struct WeightMatrix {
  const void* data;
  int64_t stride;         // from output to output; not used when packed
  int64_t packed_inputs;  // 0: row by row, see cpu::SpanGemm
};

// A packed (outputs, inputs) weight of x's dtype; throws when it is not packed for the instruction set in use.
WeightMatrix packed_matrix(const char* op, const char* name, const Tensor& packed, const Tensor& x, int64_t outputs,
                           int64_t inputs);

// A part of the query, key and value weights that is one matrix, and the spans that use it.
struct HeadBlock {
  int64_t weight;  // where it starts among the weights
  int64_t column;  // and among the columns of (T, H, 3, D) and the biases
  std::vector<ProductSpan> spans;
};

struct AttentionOperands {
  WeightMatrix qkv, out;
  std::vector<HeadBlock> blocks;
  const void* qkv_bias;
  int64_t heads, size, max_heads;
};

// Checks the weights, plain or packed: qkv_weight (H, 3, D, C), qkv_bias (H, 3, D), out_weight (C, H*D).
AttentionOperands attention_operands(const char* op, const Tensor& x, const Tensor& qkv_weight, const Tensor& qkv_bias,
                                     const Tensor& out_weight, const std::vector<Span>& spans, int64_t max_heads,
                                     bool packed);

// `attention` brings its bias table, dropout, scale, and the memory qkv (T, max_heads, 3, D) and out (T, max_heads, D).
void run_attention_sublayer(const AttentionOperands& operands, cpu::AttentionForward attention, const SublayerEnd& end,
                            Sequences& sequences, const std::vector<Span>& spans, Crew& crew);

struct FfnOperands {
  WeightMatrix in, out;
  const void* in_bias;
  int64_t max_neurons;
  Activation activation;
};

// Checks the weights, plain or packed: in_weight (F, C), in_bias (F), out_weight (C, F).
FfnOperands ffn_operands(const char* op, const Tensor& x, const Tensor& in_weight, const Tensor& in_bias,
                         const Tensor& out_weight, int64_t max_neurons, int64_t activation, bool packed);

// `active` (T, max_neurons) is working memory; `pre`, of the same shape, receives the values before the activation.
void run_ffn_sublayer(const FfnOperands& operands, void* active, void* pre, const SublayerEnd& end,
                      const std::vector<Span>& spans, Crew& crew);

// What an op of a whole encoder checks of its lists and its plan's table; returns the borders of the groups' rows.
Tensor check_encoder(const char* op, const std::vector<Tensor>& weights, int64_t weights_per_layer,
                     const std::vector<Tensor>& position_biases, const Tensor& table, int64_t num_groups,
                     const std::vector<int64_t>& max_heads, const std::vector<int64_t>& max_neurons);

}  // namespace dynabert::binding
