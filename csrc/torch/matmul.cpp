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

void run_on_all_threads(cpu::SpanGemm& gemm, const std::vector<ProductSpan>& spans, Crew& crew) {
  gemm.spans = spans.data();
  gemm.num_spans = static_cast<int64_t>(spans.size());
  const int64_t tasks = cpu::plan_gemm(gemm, crew.threads());
  crew.share_tasks(gemm, tasks, spans.size() == 1,
                   [&](int64_t begin, int64_t end) { cpu::run_gemm(gemm, begin, end); });
}

}  // namespace

void multiply_spans(const Product& p, const std::vector<ProductSpan>& spans, Crew& crew) {
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
  gemm.packed_inputs = p.packed_inputs;
  gemm.activation = p.activation;
  run_on_all_threads(gemm, mine, crew);
}

namespace {

// out = a b, straight into the memory of `out`.
void torch_matmul(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

void input_gradient_by_torch(const InputGradient& p, const ProductSpan& span) {
  const int64_t rows = span.end - span.begin;
  char* c = at(p.c, span.begin * p.c_stride, p.dtype);
  const char* product = c;
  int64_t product_stride = p.c_stride;
  std::optional<Tensor> own;
  if (p.added == p.c) {  // the product needs a place of its own
    own = torch::stable::empty({rows, span.k}, scalar_type(p.dtype));
    product = static_cast<const char*>(own->const_data_ptr());
    product_stride = span.k;
  }
  if (span.n > 0) {
    torch_matmul(view(at(p.a, span.begin * p.a_stride, p.dtype), {rows, span.n}, {p.a_stride, 1}, p.dtype),
                 view(p.b, {span.n, span.k}, {p.b_stride, 1}, p.dtype),
                 view(product, {rows, span.k}, {product_stride, 1}, p.dtype));
  } else {
    zero_columns(const_cast<char*>(product), product_stride, 0, rows, 0, span.k, p.dtype);
  }
  if (p.pre == nullptr && p.added == nullptr) return;
  cpu::RowGradient after = {};
  after.dtype = p.dtype;
  after.gradient = product;
  after.gradient_stride = product_stride;
  after.pre = p.pre ? at(p.pre, span.begin * p.pre_stride, p.dtype) : nullptr;
  after.pre_stride = p.pre_stride;
  after.added = p.added ? at(p.added, span.begin * p.added_stride, p.dtype) : nullptr;
  after.added_stride = p.added_stride;
  after.c = c;
  after.c_stride = p.c_stride;
  after.activated = p.activated ? at(p.activated, span.begin * p.activated_stride, p.dtype) : nullptr;
  after.activated_stride = p.activated_stride;
  after.columns = span.k;
  after.activation = p.activation;
  torch::stable::parallel_for(0, rows, row_grain(span.k),
                              [&](int64_t begin, int64_t end) { cpu::run_gradient(after, begin, end); });
}

// One block of dw that the same spans reach: a product for each run of rows. Widest first, that is one run.
void weight_block_by_torch(const WeightGradient& p, const std::vector<ProductSpan>& spans, int64_t n_begin,
                           int64_t n_end, int64_t k_begin, int64_t k_end) {
  std::vector<ProductSpan> runs;
  for (const ProductSpan& span : spans) {
    if (span.n < n_end || span.k < k_end) continue;
    if (!runs.empty() && runs.back().end == span.begin) {
      runs.back().end = span.end;
    } else {
      runs.push_back(span);
    }
  }
  const int64_t n = n_end - n_begin, k = k_end - k_begin;
  char* dw = at(p.dw, n_begin * p.dw_stride + k_begin, p.dtype);
  if (runs.empty()) zero_columns(dw, p.dw_stride, 0, n, 0, k, p.dtype);
  for (size_t i = 0; i < runs.size(); ++i) {
    const int64_t rows = runs[i].end - runs[i].begin;
    const Tensor dy =
        view(at(p.dy, runs[i].begin * p.dy_stride + n_begin, p.dtype), {n, rows}, {1, p.dy_stride}, p.dtype);
    const Tensor x = view(at(p.x, runs[i].begin * p.x_stride + k_begin, p.dtype), {rows, k}, {p.x_stride, 1}, p.dtype);
    if (i == 0) {
      torch_matmul(dy, x, view(dw, {n, k}, {p.dw_stride, 1}, p.dtype));
      continue;
    }
    const Tensor more = torch::stable::empty({n, k}, scalar_type(p.dtype));
    torch_matmul(dy, x, more);
    cpu::RowEpilogue sum = {};
    sum.dtype = p.dtype;
    sum.c = dw;
    sum.c_stride = p.dw_stride;
    sum.residual = more.const_data_ptr();
    sum.residual_stride = k;
    sum.columns = k;
    sum.activation = Activation::kNone;
    torch::stable::parallel_for(0, n, row_grain(k),
                                [&](int64_t begin, int64_t end) { cpu::run_epilogue(sum, begin, end); });
  }
}

void bias_gradient(const WeightGradient& p, const std::vector<ProductSpan>& spans) {
  cpu::ColumnSums sums = {};
  sums.dtype = p.dtype;
  sums.a = p.dy;
  sums.a_stride = p.dy_stride;
  sums.out = p.db;
  sums.spans = spans.data();
  sums.num_spans = static_cast<int64_t>(spans.size());
  torch::stable::parallel_for(0, p.rows, 256,
                              [&](int64_t begin, int64_t end) { cpu::run_column_sums(sums, begin, end); });
}

}  // namespace

void input_gradient(const InputGradient& p, const std::vector<ProductSpan>& spans) {
  std::vector<ProductSpan> mine;
  for (const ProductSpan& span : spans) {
    if (span.end <= span.begin || span.k == 0) continue;
    if (span.n == 0 || !cpu::has_gemm(p.dtype)) {
      input_gradient_by_torch(p, span);
    } else {
      mine.push_back({span.begin, span.end, span.k, span.n});  // its outputs are the map's inputs
    }
  }
  if (mine.empty()) return;
  cpu::SpanGemm gemm = {};
  gemm.dtype = p.dtype;
  gemm.gradient = true;
  gemm.a = p.a;
  gemm.a_stride = p.a_stride;
  gemm.b = p.b;
  gemm.b_stride = p.b_stride;
  gemm.residual = p.added;
  gemm.residual_stride = p.added_stride;
  gemm.c = p.c;
  gemm.c_stride = p.c_stride;
  gemm.slope_at = p.pre;
  gemm.slope_stride = p.pre_stride;
  gemm.activated = p.activated;
  gemm.activated_stride = p.activated_stride;
  gemm.activation = p.activation;
  Crew crew;
  run_on_all_threads(gemm, mine, crew);
}

void weight_gradient(const WeightGradient& p, const std::vector<ProductSpan>& spans) {
  if (p.db != nullptr) bias_gradient(p, spans);
  int64_t reached_rows = 0, reached_columns = 0;
  if (cpu::has_gemm(p.dtype)) {
    cpu::WeightGemm gemm = {};
    gemm.dtype = p.dtype;
    gemm.dy = p.dy;
    gemm.dy_stride = p.dy_stride;
    gemm.x = p.x;
    gemm.x_stride = p.x_stride;
    gemm.dw = p.dw;
    gemm.dw_stride = p.dw_stride;
    cpu::WeightPlan plan;
    Crew crew;
    const int64_t tasks = cpu::plan_weight_gemm(gemm, plan, spans, crew.threads());
    crew.share_tasks(gemm, tasks, spans.size() == 1,
                     [&](int64_t begin, int64_t end) { cpu::run_weight_gemm(gemm, begin, end); });
    reached_rows = plan.reached_rows;
    reached_columns = plan.reached_columns;
  } else {
    const std::vector<int64_t> n_borders = cpu::borders_of(spans, &ProductSpan::n);
    const std::vector<int64_t> k_borders = cpu::borders_of(spans, &ProductSpan::k);
    for (size_t i = 0; i + 1 < n_borders.size(); ++i) {
      for (size_t j = 0; j + 1 < k_borders.size(); ++j) {
        weight_block_by_torch(p, spans, n_borders[i], n_borders[i + 1], k_borders[j], k_borders[j + 1]);
      }
    }
    reached_rows = n_borders.back();
    reached_columns = k_borders.back();
  }
  torch::stable::parallel_for(0, p.rows, row_grain(p.columns), [&](int64_t begin, int64_t end) {
    zero_columns(p.dw, p.dw_stride, begin, std::min(end, reached_rows), reached_columns, p.columns, p.dtype);
    zero_columns(p.dw, p.dw_stride, std::max(begin, reached_rows), end, 0, p.columns, p.dtype);
  });
}

}  // namespace dynabert::binding
