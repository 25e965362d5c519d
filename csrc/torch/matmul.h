// Products of activations and weights over row spans, by this library's kernels or by PyTorch's.
#pragma once

#include <vector>

#include "cpu/gemm.h"
#include "torch/arguments.h"

namespace dynabert::binding {

// Rows begin to end - 1: n active outputs from k active inputs.
using ProductSpan = cpu::GemmSpan;

// c[r, :n] = act(a[r, :k] . b[:n, :k]^T + bias[:n]) + residual[r, :n]; pre receives the value before the activation.
struct Product {
  DType dtype;
  const void* a;
  const void* b;
  const void* bias;      // or null
  const void* residual;  // or null
  void* c;
  void* pre;  // or null
  int64_t a_stride, b_stride, residual_stride, c_stride, pre_stride;
  Activation activation;
};

// Nothing outside the spans' rows and columns is read or written. Spans with n = 0 write nothing; k = 0 sums to 0.
void multiply_spans(const Product& product, const std::vector<ProductSpan>& spans);

}  // namespace dynabert::binding
