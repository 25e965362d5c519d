// Row kernels of distillation_loss: pointers, sizes and strides in elements. Rows are independent; callers share them
// out.
#pragma once

#include "dynabert/element.h"

namespace dynabert::cpu {

// A row with this for a teacher counts nothing: it is not read.
inline constexpr int32_t kNoTeacher = -1;

struct RowPair {
  int32_t student;
  int32_t teacher;  // or kNoTeacher
};

struct DistillationLoss {
  DType dtype;
  bool squared_error;    // else soft cross-entropy
  const void* student;   // (rows, columns)
  const void* teacher;   // (any, columns)
  const RowPair* pairs;  // each student row once, in the order of work: neighbours with one teacher row share its sums
  int64_t columns;
  int64_t student_stride, teacher_stride;
};

// Both work on pairs begin to end - 1. What a row gets does not depend on the order of the pairs.
//
// losses: (rows); 0 where a row counts nothing.
void distillation_loss_forward(const DistillationLoss& arguments, double* losses, int64_t begin, int64_t end);

// dstudent: (rows, columns) contiguous, zeros where a row counts nothing. scales: (rows), the gradient of each row's
// loss.
void distillation_loss_backward(const DistillationLoss& arguments, const double* scales, void* dstudent, int64_t begin,
                                int64_t end);

}  // namespace dynabert::cpu
