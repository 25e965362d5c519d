#include "torch/matmul.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>

namespace dynabert::binding {
namespace {

ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ScalarType::Float;
    case DType::kBFloat16:
      return ScalarType::BFloat16;
    case DType::kFloat16:
      return ScalarType::Half;
    default:
      return ScalarType::Double;
  }
}

// A tensor over memory that somebody else keeps alive.
Tensor view(const void* data, std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides,
            DType dtype) {
  return torch::stable::from_blob(const_cast<void*>(data), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type(dtype));
}

// out = a weight^T + bias, straight into the memory of `out`. The bias goes in before the one rounding to the dtype.
void torch_product(const Tensor& a, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias), torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

void fill_zero(const Product& p, const ProductSpan& span) {
  for (int64_t row = span.begin; row < span.end; ++row) {
    std::memset(at(p.c, row * p.c_stride, p.dtype), 0, static_cast<size_t>(span.n * element_size(p.dtype)));
  }
}

// One product of PyTorch's library, or zeros where there is nothing to sum, then one pass for what follows it.
void span_by_torch(const Product& p, const ProductSpan& span) {
  const int64_t rows = span.end - span.begin;
  char* c = at(p.c, span.begin * p.c_stride, p.dtype);
  const bool summed = span.k > 0;
  if (summed) {
    std::optional<Tensor> bias;
    if (p.bias != nullptr) bias = view(p.bias, {span.n}, {1}, p.dtype);
    torch_product(view(at(p.a, span.begin * p.a_stride, p.dtype), {rows, span.k}, {p.a_stride, 1}, p.dtype),
                  view(p.b, {span.n, span.k}, {p.b_stride, 1}, p.dtype), bias,
                  view(c, {rows, span.n}, {p.c_stride, 1}, p.dtype));
  } else {
    fill_zero(p, span);
  }
  const void* bias = summed ? nullptr : p.bias;
  if (bias == nullptr && p.residual == nullptr && p.pre == nullptr && p.activation == Activation::kNone) return;
  cpu::RowEpilogue epilogue = {};
  epilogue.dtype = p.dtype;
  epilogue.c = c;
  epilogue.bias = bias;
  epilogue.residual = p.residual ? at(p.residual, span.begin * p.residual_stride, p.dtype) : nullptr;
  epilogue.pre = p.pre ? at(p.pre, span.begin * p.pre_stride, p.dtype) : nullptr;
  epilogue.c_stride = p.c_stride;
  epilogue.residual_stride = p.residual_stride;
  epilogue.pre_stride = p.pre_stride;
  epilogue.columns = span.n;
  epilogue.activation = p.activation;
  torch::stable::parallel_for(0, rows, row_grain(span.n),
                              [&](int64_t begin, int64_t end) { cpu::run_epilogue(epilogue, begin, end); });
}

}  // namespace

void multiply_spans(const Product& p, const std::vector<ProductSpan>& spans) {
  std::vector<ProductSpan> mine;
  for (const ProductSpan& span : spans) {
    if (span.end <= span.begin || span.n == 0) continue;
    if (span.k == 0 || !cpu::has_gemm(p.dtype)) {
      span_by_torch(p, span);
    } else {
      mine.push_back(span);
    }
  }
  if (mine.empty()) return;
  cpu::SpanGemm gemm = {};
  gemm.dtype = p.dtype;
  gemm.a = p.a;
  gemm.b = p.b;
  gemm.bias = p.bias;
  gemm.residual = p.residual;
  gemm.c = p.c;
  gemm.pre = p.pre;
  gemm.a_stride = p.a_stride;
  gemm.b_stride = p.b_stride;
  gemm.residual_stride = p.residual_stride;
  gemm.c_stride = p.c_stride;
  gemm.pre_stride = p.pre_stride;
  gemm.activation = p.activation;
  gemm.spans = mine.data();
  gemm.num_spans = static_cast<int64_t>(mine.size());
  const int64_t tasks = cpu::plan_gemm(gemm, static_cast<int64_t>(torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { cpu::run_gemm(gemm, begin, end); });
}

}  // namespace dynabert::binding
