// classification_head on the CPU: the first token of each sequence, and the one or two products after it, in one call.
// Two products of a few rows cost PyTorch's library more in finding its kernel than in multiplying.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "torch/arguments.h"
#include "torch/inference.h"
#include "torch/matmul.h"

namespace dynabert::binding {
namespace {

float to_float(BFloat16 value) {
  const uint32_t word = static_cast<uint32_t>(value.bits) << 16;
  float number;
  std::memcpy(&number, &word, sizeof number);
  return number;
}
float to_float(Half value) { return half_to_float(value.bits); }
float to_float(float value) { return value; }
double to_float(double value) { return value; }

void put(BFloat16& into, float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  // Round to nearest, ties to even; a tanh is finite or NaN.
  into.bits = std::isnan(value) ? static_cast<uint16_t>((word >> 16) | 0x40)
                                : static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
void put(Half& into, float value) { into.bits = float_to_half(value); }
void put(float& into, float value) { into = value; }
void put(double& into, double value) { into = value; }

template <class T>
void tanh_numbers(void* data, int64_t begin, int64_t end) {
  T* numbers = static_cast<T*>(data);
  for (int64_t i = begin; i < end; ++i) put(numbers[i], std::tanh(to_float(numbers[i])));
}

void tanh_in_place(void* data, int64_t rows, int64_t columns, DType dtype) {
  torch::stable::parallel_for(0, rows * columns, 1024, [&](int64_t begin, int64_t end) {
    switch (dtype) {
      case DType::kFloat32:
        return tanh_numbers<float>(data, begin, end);
      case DType::kBFloat16:
        return tanh_numbers<BFloat16>(data, begin, end);
      case DType::kFloat16:
        return tanh_numbers<Half>(data, begin, end);
      case DType::kFloat64:
        return tanh_numbers<double>(data, begin, end);
    }
  });
}

// Up to so many outputs are summed one by one, in kSums sums each: a product's long chain for each of a handful of
// numbers errs several times more than PyTorch, which sums such a product in many short ones.
constexpr int64_t kFewOutputs = 16;
constexpr int64_t kSums = 16;
constexpr int64_t kRun = 64;  // inputs of a product's chain, where there are more outputs

float dot(const float* a, const float* b, int64_t count) {
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

void few_outputs(const Product& p, int64_t rows, int64_t outputs, int64_t inputs) {
  const float *a = static_cast<const float*>(p.a), *b = static_cast<const float*>(p.b);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t output = 0; output < outputs; ++output) {
      static_cast<float*>(p.c)[row * p.c_stride + output] =
          dot(a + row * p.a_stride, b + output * p.b_stride, inputs) + static_cast<const float*>(p.bias)[output];
    }
  }
}

// One linear map of all rows: (B, inputs) to (B, outputs).
Tensor linear(const char* op, const char* weight_name, const char* bias_name, const Tensor& x, const Tensor& weight,
              const Tensor& bias, DType dtype) {
  check_shape(op, weight_name, weight, {-1, x.size(1)}, "(outputs, inputs)");
  check_dtype(op, weight_name, weight, "x", x.scalar_type());
  check_last_stride(op, weight_name, weight);
  const int64_t rows = x.size(0), outputs = weight.size(0);
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  Product p = {};
  p.dtype = dtype;
  p.a = x.const_data_ptr();
  p.a_stride = x.stride(0);
  p.b = weight.const_data_ptr();
  p.b_stride = weight.stride(0);
  p.bias = vector_of(op, bias_name, bias, outputs, x.scalar_type(), "(outputs,)");
  p.c = y.mutable_data_ptr();
  p.c_stride = outputs;
  const int64_t inputs = x.size(1);
  if (dtype == DType::kFloat32 && outputs <= kFewOutputs) {
    few_outputs(p, rows, outputs, inputs);
    return y;
  }
  Crew crew;
  if (dtype != DType::kFloat32) {
    multiply_spans(p, {{0, rows, outputs, inputs}}, crew);
    return y;
  }
  // A run of inputs at a time, each on top of the ones before: rounding then grows with the length of a run.
  for (int64_t i = 0; i == 0 || i < inputs; i += kRun) {
    p.a = at(x.const_data_ptr(), i, dtype);
    p.b = at(weight.const_data_ptr(), i, dtype);
    multiply_spans(p, {{0, rows, outputs, std::min(kRun, inputs - i)}}, crew);
    p.bias = nullptr;
    p.residual = p.c;
    p.residual_stride = p.c_stride;
  }
  return y;
}

}  // namespace

Tensor classification_head(const Tensor& x, const Tensor& cu_seqlens, std::optional<Tensor> dense_weight,
                           std::optional<Tensor> dense_bias, const Tensor& out_weight, const Tensor& out_bias) {
  const char* op = "classification_head";
  check_shape(op, "x", x, {-1, -1}, "(T, C)");
  check_last_stride(op, "x", x);
  const DType dtype = float_dtype(op, "x", x);
  const int32_t* starts = int32_vector(op, "cu_seqlens", cu_seqlens);
  const int64_t rows = cu_seqlens.size(0) - 1, columns = x.size(1);
  if (rows < 0) refuse(op, "cu_seqlens is empty; allowed: one border more than sequences, the first 0");
  if (dense_weight.has_value() != dense_bias.has_value()) {
    refuse(op, "dense_weight and dense_bias belong together; give both, or neither");
  }
  Tensor first = torch::stable::new_empty(x, {rows, columns});
  for (int64_t i = 0; i < rows; ++i) {
    if (starts[i] < 0 || starts[i] >= x.size(0)) {
      refuse(op, "sequence ", i, " starts at row ", starts[i], "; allowed: 0 to ", x.size(0) - 1);
    }
    std::memcpy(at(first.mutable_data_ptr(), i * columns, dtype),
                at(x.const_data_ptr(), starts[i] * x.stride(0), dtype),
                static_cast<size_t>(columns * element_size(dtype)));
  }
  if (dense_weight.has_value()) {
    first = linear(op, "dense_weight", "dense_bias", first, *dense_weight, *dense_bias, dtype);
    tanh_in_place(first.mutable_data_ptr(), rows, first.size(1), dtype);
  }
  return linear(op, "out_weight", "out_bias", first, out_weight, out_bias, dtype);
}

}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("classification_head", TORCH_BOX(&dynabert::binding::classification_head));
}
