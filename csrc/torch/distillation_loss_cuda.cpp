// distillation_loss on a CUDA device: check, allocate, guard the device, launch on PyTorch's stream.
#include "cuda/distillation_loss.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>

#include "torch/cuda_arguments.h"
#include "torch/cuda_stream.h"

namespace dynabert::binding {
namespace {

const char* kForwardName = "distillation_loss_fwd";
const char* kBackwardName = "distillation_loss_bwd";

const int32_t* integers(const char* op, const char* name, const Tensor& tensor, int64_t count, const char* letters,
                        const Tensor& student) {
  check_device(op, name, tensor, "student", student);
  check_shape(op, name, tensor, {count}, letters);
  if (tensor.scalar_type() != ScalarType::Int) {
    refuse(op, name, " is ", torch::headeronly::toString(tensor.scalar_type()), "; allowed: int32");
  }
  check_last_stride(op, name, tensor);
  return tensor.const_data_ptr<int32_t>();
}

DType read_arguments(const char* op, const Tensor& student, const Tensor& teacher, const Tensor& rows,
                     const std::optional<Tensor>& teacher_rows, const std::optional<Tensor>& active, int64_t kind,
                     cuda::DistillationLoss& a) {
  check_shape(op, "student", student, {-1, -1}, "(R, C)");
  const DType dtype = float_dtype(op, "student", student);
  if (dtype == DType::kFloat64) refuse(op, "student is Double; allowed on CUDA: float32, bfloat16, float16");
  if (student.size(1) < 1 || student.size(1) > cuda::kMaxDistillationLossColumns) {
    refuse(op, "student has shape ", shape_of(student), "; allowed on CUDA: 1 to ", cuda::kMaxDistillationLossColumns,
           " columns");
  }
  check_last_stride(op, "student", student);
  check_device(op, "teacher", teacher, "student", student);
  check_shape(op, "teacher", teacher, {-1, student.size(1)}, "(Q, C)");
  check_dtype(op, "teacher", teacher, "student", student.scalar_type());
  check_last_stride(op, "teacher", teacher);
  if (kind != 0 && kind != 1) refuse(op, "kind is ", kind, "; allowed: 0 soft cross-entropy, 1 squared error");
  if (rows.dim() != 1 || rows.size(0) == 0) {
    refuse(op, "rows has shape ", shape_of(rows), "; allowed: (G+1,), one border more than groups");
  }
  a.squared_error = kind == 1;
  a.student = student.const_data_ptr();
  a.student_stride = student.stride(0);
  a.teacher = teacher.const_data_ptr();
  a.teacher_stride = teacher.stride(0);
  a.num_rows = student.size(0);
  a.num_groups = rows.size(0) - 1;
  a.columns = student.size(1);
  a.rows = integers(op, "rows", rows, a.num_groups + 1, "(G+1,)", student);
  if (teacher_rows.has_value()) {
    a.teacher_rows = integers(op, "teacher_rows", *teacher_rows, a.num_rows, "(R,)", student);
  } else if (teacher.size(0) < a.num_rows) {
    refuse(op, "teacher has ", teacher.size(0), " rows and student ", a.num_rows, "; allowed: at least as many");
  }
  if (active.has_value()) a.active = integers(op, "active", *active, a.num_groups, "(G,)", student);
  return dtype;
}

Tensor distillation_loss_fwd(const Tensor& student, const Tensor& teacher, const Tensor& rows,
                             std::optional<Tensor> teacher_rows, std::optional<Tensor> active, int64_t kind) {
  const char* op = kForwardName;
  cuda::DistillationLoss a = {};
  const DType dtype = read_arguments(op, student, teacher, rows, teacher_rows, active, kind, a);
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  if (a.num_rows == 0 || a.num_groups == 0) {  // an empty grid is a launch error
    return torch::stable::new_zeros(student, {a.num_groups}, ScalarType::Float);
  }
  Tensor row_loss = torch::stable::new_empty(student, {a.num_rows}, ScalarType::Float);
  Tensor loss = torch::stable::new_empty(student, {a.num_groups}, ScalarType::Float);
  check_launch_of(
      op, cuda::distillation_loss_forward(dtype, a, row_loss.mutable_data_ptr<float>(), loss.mutable_data_ptr<float>(),
                                          current_stream(student.get_device_index())));
  return loss;
}

Tensor distillation_loss_bwd(const Tensor& dloss, const Tensor& student, const Tensor& teacher, const Tensor& rows,
                             std::optional<Tensor> teacher_rows, std::optional<Tensor> active, int64_t kind) {
  const char* op = kBackwardName;
  cuda::DistillationLoss a = {};
  const DType dtype = read_arguments(op, student, teacher, rows, teacher_rows, active, kind, a);
  check_device(op, "dloss", dloss, "student", student);
  check_shape(op, "dloss", dloss, {a.num_groups}, "(G,)");
  check_dtype(op, "dloss", dloss, "a loss", ScalarType::Float);
  check_last_stride(op, "dloss", dloss);
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  Tensor dstudent = torch::stable::new_empty(student, {a.num_rows, a.columns});
  if (a.num_rows > 0) {
    check_launch_of(
        op, cuda::distillation_loss_backward(dtype, a, dloss.const_data_ptr<float>(), dstudent.mutable_data_ptr(),
                                             current_stream(student.get_device_index())));
  }
  return dstudent;
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cuda, CUDA, m) {
  m.impl("distillation_loss_fwd", TORCH_BOX(&dynabert::binding::distillation_loss_fwd));
  m.impl("distillation_loss_bwd", TORCH_BOX(&dynabert::binding::distillation_loss_bwd));
}
