#include "torch/int8_linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

namespace dynabert::binding {

Int8Linear read_int8_linear(const char* op, const Int8Names& names, const Tensor* given, int64_t inputs, int64_t chunk,
                            ScalarType type) {
  const Tensor &weight = given[0], &scale = given[1], &offset = given[2], &bias = given[3];
  Int8Linear linear = {};
  linear.inputs = inputs;
  linear.cut.inputs = chunk;
  linear.cut.units = (chunk + cpu::kInt8Unit - 1) / cpu::kInt8Unit;
  linear.chunks = linear.cut.of(inputs);
  for (int64_t i = 0; i < bias.dim(); ++i) linear.outputs = (i ? linear.outputs : 1) * bias.size(i);
  const int64_t panels = (linear.outputs + cpu::kInt8Panel - 1) / cpu::kInt8Panel;
  linear.columns = panels * cpu::kInt8Panel;
  check_shape(op, names.weight, weight, {panels, linear.chunks, linear.cut.units, cpu::kInt8Panel, cpu::kInt8Unit},
              "(panels, chunks, units, 32, 4)");
  check_shape(op, names.scale, scale, {linear.chunks, linear.columns}, "(chunks, 32 panels)");
  check_shape(op, names.offset, offset, {linear.chunks, linear.columns}, "(chunks, 32 panels)");
  const auto same = [&](const char* what, const Tensor& tensor, ScalarType wanted) {
    if (tensor.scalar_type() != wanted) {
      refuse(op, what, " is ", torch::headeronly::toString(tensor.scalar_type()),
             "; allowed: ", torch::headeronly::toString(wanted));
    }
    if (!tensor.is_contiguous()) refuse(op, what, " is not contiguous; pass it contiguous");
  };
  same(names.weight, weight, ScalarType::Char);
  same(names.scale, scale, ScalarType::Float);
  same(names.offset, offset, ScalarType::Int);
  check_dtype(op, names.bias, bias, "x", type);
  if (!bias.is_contiguous()) refuse(op, names.bias, " is not contiguous; pass it contiguous");
  linear.weight = static_cast<const int8_t*>(weight.const_data_ptr());
  linear.scale = static_cast<const float*>(scale.const_data_ptr());
  linear.offset = static_cast<const int32_t*>(offset.const_data_ptr());
  linear.bias = bias.const_data_ptr();
  return linear;
}

Int8Activations::Int8Activations(const Tensor& like, int64_t rows, int64_t row_bytes)
    : bytes(torch::stable::new_empty(like, {rows, row_bytes}, ScalarType::Byte)),
      scale(torch::stable::new_empty(like, {rows}, ScalarType::Float)),
      stride(row_bytes) {}

void multiply_int8(const Int8Linear& linear, DType dtype, const void* a, int64_t a_stride, void* c, int64_t c_stride,
                   Activation activation, const std::vector<ProductSpan>& spans, Int8Activations& activations,
                   Crew& crew) {
  if (spans.empty()) return;
  uint8_t* bytes = static_cast<uint8_t*>(activations.bytes.mutable_data_ptr());
  float* scale = static_cast<float*>(activations.scale.mutable_data_ptr());
  // One launch for all spans: many short texts of different widths are still shared by all threads.
  int64_t most = 1;
  for (const ProductSpan& span : spans) most = std::max(most, span.k);
  const int64_t start = spans.front().begin;
  crew.share(spans.back().end - start, row_grain(most), [&](int64_t first, int64_t last) {
    cpu::Int8Rows rows = {.dtype = dtype,
                          .x = a,
                          .x_stride = a_stride,
                          .k = 0,
                          .cut = linear.cut,
                          .a = bytes,
                          .a_stride = activations.stride,
                          .scale = scale};
    for (const ProductSpan& span : spans) {
      const int64_t begin = std::max(start + first, span.begin), end = std::min(start + last, span.end);
      rows.k = span.k;
      if (begin < end) cpu::run_int8_rows(rows, begin, end);
    }
  });
  cpu::Int8Gemm gemm = {};
  gemm.dtype = dtype;
  gemm.a = bytes;
  gemm.a_scale = scale;
  gemm.a_stride = activations.stride;
  gemm.b = linear.weight;
  gemm.scale = linear.scale;
  gemm.offset = linear.offset;
  gemm.columns = linear.columns;
  gemm.chunks = linear.chunks;
  gemm.cut = linear.cut;
  gemm.bias = linear.bias;
  gemm.c = c;
  gemm.c_stride = c_stride;
  gemm.activation = activation;
  gemm.spans = spans.data();
  gemm.num_spans = static_cast<int64_t>(spans.size());
  const int64_t tasks = cpu::plan_int8_gemm(gemm, crew.threads());
  crew.share_tasks(gemm, tasks, spans.size() == 1,
                   [&](int64_t begin, int64_t end) { cpu::run_int8_gemm(gemm, begin, end); });
}

namespace {

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& offset, const Tensor& bias,
                   int64_t chunk, int64_t n, int64_t k, int64_t activation) {
  const char* op = "int8_linear";
  check_shape(op, "x", x, {-1, -1}, "(T, inputs)");
  check_last_stride(op, "x", x);
  const DType dtype = float_dtype(op, "x", x);
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) refuse(op, "x; allowed: float32, bfloat16");
  if (chunk < 1) refuse(op, "chunk is ", chunk, "; allowed: 1 or more");
  const Tensor given[kInt8Tensors] = {weight, scale, offset, bias};
  const int64_t tokens = x.size(0);
  const Int8Linear linear =
      read_int8_linear(op, {"weight", "scale", "offset", "bias"}, given, x.size(1), chunk, x.scalar_type());
  if (n < 1 || n > linear.outputs) refuse(op, "n is ", n, "; allowed: 1 to ", linear.outputs);
  if (k < 1 || k > linear.inputs) refuse(op, "k is ", k, "; allowed: 1 to ", linear.inputs);
  Tensor y = torch::stable::new_empty(x, {tokens, n});
  if (tokens == 0) return y;
  Int8Activations activations(x, tokens, linear.cut.bytes(linear.inputs));
  Crew crew;
  multiply_int8(linear, dtype, x.const_data_ptr(), x.stride(0), y.mutable_data_ptr(), n, activation_of(op, activation),
                {{0, tokens, n, k}}, activations, crew);
  return y;
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) { m.impl("int8_linear", TORCH_BOX(&dynabert::binding::int8_linear)); }
