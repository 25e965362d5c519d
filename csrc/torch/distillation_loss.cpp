// distillation_loss on the CPU: check, allocate, call, add up the rows of each group.
#include "cpu/distillation_loss.h"

#include <torch/csrc/stable/library.h>

#include <limits>

#include "torch/arguments.h"

namespace dynabert::binding {
namespace {

const char* kForwardName = "distillation_loss_fwd";
const char* kBackwardName = "distillation_loss_bwd";

// The arguments of both directions, and what the plan says of each row.
struct Problem {
  cpu::DistillationLoss kernel = {};
  int64_t num_rows = 0, num_groups = 0;
  std::vector<Span> spans;          // the groups that count
  std::vector<cpu::RowPair> pairs;  // (num_rows)
};

// The pairs by teacher row, so that the rows of all widths that share one are neighbours. Counted, not compared: what
// it costs must be little beside one pass over the rows. `teachers`: at most as many as there are pairs.
std::vector<cpu::RowPair> by_teacher(const std::vector<cpu::RowPair>& pairs, int64_t teachers) {
  std::vector<int32_t> next(static_cast<size_t>(teachers) + 2);
  for (const cpu::RowPair& pair : pairs) ++next[static_cast<size_t>(pair.teacher + 2)];
  for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
  std::vector<cpu::RowPair> sorted(pairs.size());
  for (const cpu::RowPair& pair : pairs)
    sorted[static_cast<size_t>(next[static_cast<size_t>(pair.teacher + 1)]++)] = pair;
  return sorted;
}

[[noreturn]] void refuse_index(const char* op, int64_t row, int64_t index, int64_t teachers) {
  std::ostringstream text;
  text << op << ": teacher_rows[" << row << "] is " << index << "; allowed: less than teacher's " << teachers
       << " rows, or -1 for a row that counts nothing";
  throw std::out_of_range(text.str());  // arrives in Python as IndexError
}

Problem read_problem(const char* op, const Tensor& student, const Tensor& teacher, const Tensor& rows,
                     const std::optional<Tensor>& teacher_rows, const std::optional<Tensor>& active, int64_t kind) {
  check_shape(op, "student", student, {-1, -1}, "(R, C)");
  check_shape(op, "teacher", teacher, {-1, student.size(1)}, "(Q, C)");
  Problem p;
  p.kernel.dtype = float_dtype(op, "student", student);
  check_dtype(op, "teacher", teacher, "student", student.scalar_type());
  if (student.size(1) == 0) refuse(op, "student has shape ", shape_of(student), "; allowed: at least one column");
  check_last_stride(op, "student", student);
  check_last_stride(op, "teacher", teacher);
  if (kind != 0 && kind != 1) refuse(op, "kind is ", kind, "; allowed: 0 soft cross-entropy, 1 squared error");
  p.num_rows = student.size(0);
  p.num_groups = rows.size(0) - 1;
  p.kernel.squared_error = kind == 1;
  p.kernel.student = student.const_data_ptr();
  p.kernel.student_stride = student.stride(0);
  p.kernel.teacher = teacher.const_data_ptr();
  p.kernel.teacher_stride = teacher.stride(0);
  p.kernel.columns = student.size(1);
  const int32_t* partners = nullptr;
  if (teacher_rows.has_value()) {
    partners = int32_vector(op, "teacher_rows", *teacher_rows);
    if (teacher_rows->size(0) != p.num_rows) {
      refuse(op, "teacher_rows has ", teacher_rows->size(0), " numbers; student has ", p.num_rows, " rows");
    }
  }
  p.pairs.resize(static_cast<size_t>(p.num_rows));
  for (int64_t row = 0; row < p.num_rows; ++row) {
    p.pairs[static_cast<size_t>(row)] = {static_cast<int32_t>(row), cpu::kNoTeacher};
  }
  for (const Span& span : read_spans(op, rows, active, "active", 1, std::numeric_limits<int32_t>::max(), p.num_rows)) {
    if (span.count == 0) continue;
    p.spans.push_back(span);
    for (int64_t row = span.begin; row < span.end; ++row) {
      const int64_t partner = partners == nullptr ? row : partners[row];
      if (partner >= teacher.size(0)) refuse_index(op, row, partner, teacher.size(0));
      if (partner >= 0) p.pairs[static_cast<size_t>(row)].teacher = static_cast<int32_t>(partner);
    }
  }
  // With more teacher rows than student rows few are shared.
  if (partners != nullptr && teacher.size(0) <= p.num_rows) p.pairs = by_teacher(p.pairs, teacher.size(0));
  p.kernel.pairs = p.pairs.data();
  return p;
}

Tensor distillation_loss_fwd(const Tensor& student, const Tensor& teacher, const Tensor& rows,
                             std::optional<Tensor> teacher_rows, std::optional<Tensor> active, int64_t kind) {
  const Problem p = read_problem(kForwardName, student, teacher, rows, teacher_rows, active, kind);
  std::vector<double> losses(static_cast<size_t>(p.num_rows));
  torch::stable::parallel_for(0, p.num_rows, row_grain(p.kernel.columns), [&](int64_t begin, int64_t end) {
    cpu::distillation_loss_forward(p.kernel, losses.data(), begin, end);
  });
  Tensor loss = torch::stable::new_zeros(student, {p.num_groups}, wide_type(p.kernel.dtype));
  for (const Span& span : p.spans) {
    double total = 0.0;
    for (int64_t row = span.begin; row < span.end; ++row) total += losses[static_cast<size_t>(row)];
    if (p.kernel.dtype == DType::kFloat64) {
      loss.mutable_data_ptr<double>()[span.group] = total;
    } else {
      loss.mutable_data_ptr<float>()[span.group] = static_cast<float>(total);
    }
  }
  return loss;
}

Tensor distillation_loss_bwd(const Tensor& dloss, const Tensor& student, const Tensor& teacher, const Tensor& rows,
                             std::optional<Tensor> teacher_rows, std::optional<Tensor> active, int64_t kind) {
  const char* op = kBackwardName;
  const Problem p = read_problem(op, student, teacher, rows, teacher_rows, active, kind);
  check_shape(op, "dloss", dloss, {p.num_groups}, "(G,)");
  check_dtype(op, "dloss", dloss, "a loss", wide_type(p.kernel.dtype));
  check_last_stride(op, "dloss", dloss);
  std::vector<double> scales(static_cast<size_t>(p.num_rows));
  for (const Span& span : p.spans) {
    const double scale = p.kernel.dtype == DType::kFloat64 ? dloss.const_data_ptr<double>()[span.group]
                                                           : dloss.const_data_ptr<float>()[span.group];
    std::fill(scales.begin() + span.begin, scales.begin() + span.end, scale);
  }
  Tensor dstudent = torch::stable::new_empty(student, {p.num_rows, p.kernel.columns});
  void* out = dstudent.mutable_data_ptr();
  torch::stable::parallel_for(0, p.num_rows, row_grain(p.kernel.columns), [&](int64_t begin, int64_t end) {
    cpu::distillation_loss_backward(p.kernel, scales.data(), out, begin, end);
  });
  return dstudent;
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("distillation_loss_fwd", TORCH_BOX(&dynabert::binding::distillation_loss_fwd));
  m.impl("distillation_loss_bwd", TORCH_BOX(&dynabert::binding::distillation_loss_bwd));
}
