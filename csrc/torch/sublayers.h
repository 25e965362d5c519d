// What both sub-layers share: their checks, the spans of their products, and what they end with: dropout, residual and
// LayerNorm of the projected rows, and the rows that skip the layer.
#pragma once

#include <vector>

#include "cpu/layer_norm.h"
#include "torch/arguments.h"
#include "torch/matmul.h"

namespace dynabert::binding {

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

// The products of spans with a count, neighbours merged. n and k are so much for each head or neuron, or fixed where
// that is 0.
std::vector<ProductSpan> product_spans(const std::vector<Span>& spans, int64_t n_per_count, int64_t fixed_n,
                                       int64_t k_per_count, int64_t fixed_k);

// x is (T, C) with at least one column; returns its dtype.
DType check_hidden(const char* op, const Tensor& x);

// A weight has x's dtype and its last dimension side by side.
void check_weight(const char* op, const char* name, const Tensor& weight, const Tensor& x);

}  // namespace dynabert::binding
