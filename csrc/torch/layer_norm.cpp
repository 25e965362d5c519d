// add_layer_norm on the CPU: check, allocate, call.
#include "cpu/layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "cpu/scratch.h"
#include "torch/arguments.h"

namespace dynabert::binding {
namespace {

const char* kForwardName = "add_layer_norm_fwd";
const char* kBackwardName = "add_layer_norm_bwd";

DType check_input(const char* op, const Tensor& x, const std::optional<Tensor>& residual) {
  check_shape(op, "x", x, {-1, -1}, "(T, C)");
  const DType dtype = float_dtype(op, "x", x);
  if (x.size(1) == 0) refuse(op, "x has shape ", shape_of(x), "; allowed: at least one column");
  check_last_stride(op, "x", x);
  if (residual.has_value()) {
    check_shape(op, "residual", *residual, {x.size(0), x.size(1)}, "(T, C)");
    check_dtype(op, "residual", *residual, "x", x.scalar_type());
    check_last_stride(op, "residual", *residual);
  }
  return dtype;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_fwd(const Tensor& x, std::optional<Tensor> residual,
                                                      const Tensor& weight, const Tensor& bias, double eps) {
  const char* op = kForwardName;
  const DType dtype = check_input(op, x, residual);
  const int64_t rows = x.size(0), columns = x.size(1);
  cpu::LayerNormForward a = {};
  a.dtype = dtype;
  a.columns = columns;
  a.weight = vector_of(op, "weight", weight, columns, x.scalar_type());
  a.bias = vector_of(op, "bias", bias, columns, x.scalar_type());
  Tensor y = torch::stable::new_empty(x, {rows, columns});
  Tensor mean = torch::stable::new_empty(x, {rows}, wide_type(dtype));
  Tensor rstd = torch::stable::new_empty(x, {rows}, wide_type(dtype));
  a.x = x.const_data_ptr();
  a.x_stride = x.stride(0);
  a.residual = residual.has_value() ? residual->const_data_ptr() : nullptr;
  a.residual_stride = residual.has_value() ? residual->stride(0) : 0;
  a.y = y.mutable_data_ptr();
  a.y_stride = columns;
  a.mean = mean.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  a.eps = eps;
  torch::stable::parallel_for(0, rows, row_grain(columns),
                              [&](int64_t begin, int64_t end) { cpu::layer_norm_forward(a, begin, end); });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_bwd(const Tensor& dy, const Tensor& x, std::optional<Tensor> residual,
                                                      const Tensor& weight, const Tensor& mean, const Tensor& rstd) {
  const char* op = kBackwardName;
  const DType dtype = check_input(op, x, residual);
  const int64_t rows = x.size(0), columns = x.size(1);
  check_shape(op, "dy", dy, {rows, columns}, "(T, C)");
  check_dtype(op, "dy", dy, "x", x.scalar_type());
  check_last_stride(op, "dy", dy);
  cpu::LayerNormBackward a = {};
  a.dtype = dtype;
  a.rows = rows;
  a.columns = columns;
  a.weight = vector_of(op, "weight", weight, columns, x.scalar_type());
  a.mean = vector_of(op, "mean", mean, rows, wide_type(dtype), "(T,)");
  a.rstd = vector_of(op, "rstd", rstd, rows, wide_type(dtype), "(T,)");
  Tensor dx = torch::stable::new_empty(x, {rows, columns});
  Tensor dw = torch::stable::new_empty(weight, {columns});
  Tensor db = torch::stable::new_empty(weight, {columns});
  // The cut into chunks depends on the sizes alone, and with it the order of every sum.
  a.rows_per_chunk = std::max<int64_t>(32, (rows + 63) / 64);
  a.sums = 2;
  const int64_t chunks = (rows + a.rows_per_chunk - 1) / a.rows_per_chunk, numbers = chunks * a.sums * columns;
  // Kept between calls where it is small: the system's first touch of new memory costs more than the sums in it.
  constexpr int64_t kKeptBytes = int64_t{4} << 20;
  const int64_t bytes = numbers * element_size(wide_dtype(dtype));
  std::optional<Tensor> own;
  if (bytes > kKeptBytes) own = torch::stable::new_empty(x, {numbers}, wide_type(dtype));
  a.partials = own ? own->mutable_data_ptr() : cpu::scratch(cpu::kScratchD, static_cast<size_t>(bytes));
  a.dy = dy.const_data_ptr();
  a.dy_stride = dy.stride(0);
  a.x = x.const_data_ptr();
  a.x_stride = x.stride(0);
  a.residual = residual.has_value() ? residual->const_data_ptr() : nullptr;
  a.residual_stride = residual.has_value() ? residual->stride(0) : 0;
  a.dx = dx.mutable_data_ptr();
  a.dx_stride = columns;
  torch::stable::parallel_for(0, chunks, 1,
                              [&](int64_t begin, int64_t end) { cpu::layer_norm_backward(a, begin, end); });
  void* const out[] = {dw.mutable_data_ptr(), db.mutable_data_ptr()};
  cpu::layer_norm_sum_partials(dtype, a.partials, chunks, a.sums, columns, out);
  return {dx, dw, db};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("add_layer_norm_fwd", TORCH_BOX(&dynabert::binding::add_layer_norm_fwd));
  m.impl("add_layer_norm_bwd", TORCH_BOX(&dynabert::binding::add_layer_norm_bwd));
}
