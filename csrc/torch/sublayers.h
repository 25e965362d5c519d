// What both sub-layers end with: dropout, residual and LayerNorm of the projected rows, and the rows that skip the
// layer.
#pragma once

#include <vector>

#include "cpu/layer_norm.h"
#include "torch/arguments.h"

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

}  // namespace dynabert::binding
