// Products of activations and weights over row spans, by this library's kernels or by PyTorch's.
#pragma once

#include <vector>

#include "cpu/gemm.h"
#include "cpu/weight_gradient.h"
#include "torch/arguments.h"
#include "torch/crew.h"

namespace dynabert::binding {

// Rows begin to end - 1: n active outputs from k active inputs.
using ProductSpan = cpu::GemmSpan;

// c[r, :n] = act(a[r, :k] . b[:n, :k]^T + bias[:n]) + residual[r, :n]; pre receives the value before the activation.
struct Product {
  DType dtype;
  const void* a;
  const void* b;         // row by row, or packed: see packed_inputs of cpu::SpanGemm
  const void* bias;      // or null
  const void* residual;  // or null
  void* c;
  void* pre;  // or null
  int64_t a_stride, b_stride, residual_stride, c_stride, pre_stride;
  int64_t packed_inputs;  // 0: b is row by row
  Activation activation;
};

// Nothing outside the spans' rows and columns is read or written. Spans with n = 0 write nothing; k = 0 sums to 0.
// Inside a region only dtypes of cpu::has_gemm, and no span with k = 0.
void multiply_spans(const Product& product, const std::vector<ProductSpan>& spans, Crew& crew);

// The gradients of a linear map y[r, :n] = x[r, :k] . w[:n, :k]^T + b[:n], over the same spans as the map itself.

// c[r, :k] = (a[r, :n] . b[:n, :k]) * act'(pre[r, :k]) + added[r, :k]; activated receives act(pre). a is the gradient
// of y, b is w where it lies.
struct InputGradient {
  DType dtype;
  const void* a;
  const void* b;
  const void* pre;    // or null: factor 1, and activated is not written
  const void* added;  // or null; may be c
  void* c;
  void* activated;  // or null
  int64_t a_stride, b_stride, pre_stride, added_stride, c_stride, activated_stride;
  Activation activation;
};

// Nothing outside the spans' rows and columns is read or written. Spans with k = 0 write nothing; n = 0 sums to 0.
void input_gradient(const InputGradient& gradient, const std::vector<ProductSpan>& spans);

// dw[:n, :k] = sum over rows of dy[r, :n]^T x[r, :k], db[:n] = sum over rows of dy[r, :n]; zero beyond what any span
// reaches. All of dw and db is written, once.
struct WeightGradient {
  DType dtype;
  const void* dy;
  const void* x;
  void* dw;  // (rows, columns)
  void* db;  // (rows) or null
  int64_t dy_stride, x_stride, dw_stride;
  int64_t rows, columns;
};

void weight_gradient(const WeightGradient& gradient, const std::vector<ProductSpan>& spans);

}  // namespace dynabert::binding
