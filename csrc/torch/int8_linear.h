// Linear maps with int8 weights over row spans: what the encoder in int8 is made of.
#pragma once

#include <vector>

#include "cpu/int8_gemm.h"
#include "torch/arguments.h"
#include "torch/matmul.h"

namespace dynabert::binding {

constexpr int64_t kInt8Tensors = 4;  // of a linear map: weight, scale, offset, bias

// A linear map of `outputs` outputs and `inputs` inputs, checked.
struct Int8Linear {
  const int8_t* weight;
  const float* scale;
  const int32_t* offset;
  const void* bias;
  int64_t outputs, inputs, columns, chunks;
  cpu::Int8Chunks cut;
};

// What messages call the four tensors. Not put together at each call: that would cost a short text more than the
// checks.
struct Int8Names {
  const char *weight, *scale, *offset, *bias;
};
#define DYNABERT_INT8_NAMES(name) {name "_weight", name "_scale", name "_offset", name "_bias"}

// Checks the four tensors from `given` on. `chunk`: inputs of a chunk. `outputs` is what the bias has.
Int8Linear read_int8_linear(const char* op, const Int8Names& names, const Tensor* given, int64_t inputs, int64_t chunk,
                            ScalarType type);

// Rows as bytes and their scales, for one product after the other. Grows to the largest.
struct Int8Activations {
  Tensor bytes, scale;
  int64_t stride;

  Int8Activations(const Tensor& like, int64_t rows, int64_t row_bytes);
};

// c[r, :n] = act(a[r, :k] . weight[:n, :k]^T + bias[:n]), a quantised row by row over its k active numbers. Nothing
// outside the spans' rows and columns is read of a or written to c. n and k are at least 1.
void multiply_int8(const Int8Linear& linear, DType dtype, const void* a, int64_t a_stride, void* c, int64_t c_stride,
                   Activation activation, const std::vector<ProductSpan>& spans, Int8Activations& activations,
                   Crew& crew);

}  // namespace dynabert::binding
