// add_layer_norm on a CUDA device: check, allocate, guard the device, launch on PyTorch's stream.
#include "cuda/layer_norm.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "torch/cuda_arguments.h"
#include "torch/cuda_stream.h"

namespace dynabert::binding {
namespace {

const char* kForwardName = "add_layer_norm_fwd";
const char* kBackwardName = "add_layer_norm_bwd";

// A (T, C) matrix like x: any row stride, columns side by side.
void check_rows(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  check_device(op, name, tensor, "x", x);
  check_shape(op, name, tensor, {x.size(0), x.size(1)}, "(T, C)");
  check_dtype(op, name, tensor, "x", x.scalar_type());
  check_last_stride(op, name, tensor);
}

DType check_input(const char* op, const Tensor& x, const std::optional<Tensor>& residual) {
  check_shape(op, "x", x, {-1, -1}, "(T, C)");
  const DType dtype = float_dtype(op, "x", x);
  if (dtype == DType::kFloat64) refuse(op, "x is Double; allowed on CUDA: float32, bfloat16, float16");
  if (x.size(1) < 1 || x.size(1) > cuda::kMaxLayerNormColumns) {
    refuse(op, "x has shape ", shape_of(x), "; allowed on CUDA: 1 to ", cuda::kMaxLayerNormColumns, " columns");
  }
  check_last_stride(op, "x", x);
  if (residual.has_value()) check_rows(op, "residual", *residual, x);
  return dtype;
}

const void* parameter(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  check_device(op, name, tensor, "x", x);
  return vector_of(op, name, tensor, x.size(1), x.scalar_type());
}

const float* statistic(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  check_device(op, name, tensor, "x", x);
  check_shape(op, name, tensor, {x.size(0)}, "(T,)");
  check_dtype(op, name, tensor, "a statistic", ScalarType::Float);
  check_last_stride(op, name, tensor);
  return tensor.const_data_ptr<float>();
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_fwd(const Tensor& x, std::optional<Tensor> residual,
                                                      const Tensor& weight, const Tensor& bias, double eps) {
  const char* op = kForwardName;
  const DType dtype = check_input(op, x, residual);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor mean = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float);
  cuda::AddLayerNormForward a = {};
  a.x = x.const_data_ptr();
  a.x_stride = x.stride(0);
  a.residual = residual.has_value() ? residual->const_data_ptr() : nullptr;
  a.residual_stride = residual.has_value() ? residual->stride(0) : 0;
  a.weight = parameter(op, "weight", weight, x);
  a.bias = parameter(op, "bias", bias, x);
  a.y = y.mutable_data_ptr();
  a.y_stride = x.size(1);
  a.mean = mean.mutable_data_ptr<float>();
  a.rstd = rstd.mutable_data_ptr<float>();
  a.rows = x.size(0);
  a.columns = x.size(1);
  a.eps = static_cast<float>(eps);
  if (a.rows > 0) {  // an empty grid is a launch error
    check_launch_of(op, cuda::add_layer_norm_forward(dtype, a, current_stream(x.get_device_index())));
  }
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_bwd(const Tensor& dy, const Tensor& x, std::optional<Tensor> residual,
                                                      const Tensor& weight, const Tensor& mean, const Tensor& rstd) {
  const char* op = kBackwardName;
  const DType dtype = check_input(op, x, residual);
  check_rows(op, "dy", dy, x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  cuda::AddLayerNormBackward a = {};
  a.dy = dy.const_data_ptr();
  a.dy_stride = dy.stride(0);
  a.x = x.const_data_ptr();
  a.x_stride = x.stride(0);
  a.residual = residual.has_value() ? residual->const_data_ptr() : nullptr;
  a.residual_stride = residual.has_value() ? residual->stride(0) : 0;
  a.weight = parameter(op, "weight", weight, x);
  a.mean = statistic(op, "mean", mean, x);
  a.rstd = statistic(op, "rstd", rstd, x);
  a.rows = x.size(0);
  a.columns = x.size(1);
  Tensor dx = torch::stable::new_empty(x, {a.rows, a.columns});
  if (a.rows == 0) {
    return {dx, torch::stable::new_zeros(weight, {a.columns}), torch::stable::new_zeros(weight, {a.columns})};
  }
  Tensor dw = torch::stable::new_empty(weight, {a.columns});
  Tensor db = torch::stable::new_empty(weight, {a.columns});
  check_launch_of(op, cuda::add_layer_norm_partials(a.rows, a.columns, x.get_device_index(), &a.num_partials));
  Tensor partials = torch::stable::new_empty(x, {a.num_partials, 2, a.columns}, ScalarType::Float);
  a.dx = dx.mutable_data_ptr();
  a.dx_stride = a.columns;
  a.dw = dw.mutable_data_ptr();
  a.db = db.mutable_data_ptr();
  a.partials = partials.mutable_data_ptr<float>();
  check_launch_of(op, cuda::add_layer_norm_backward(dtype, a, current_stream(x.get_device_index())));
  return {dx, dw, db};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cuda, CUDA, m) {
  m.impl("add_layer_norm_fwd", TORCH_BOX(&dynabert::binding::add_layer_norm_fwd));
  m.impl("add_layer_norm_bwd", TORCH_BOX(&dynabert::binding::add_layer_norm_bwd));
}
