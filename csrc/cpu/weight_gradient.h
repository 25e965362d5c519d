// Gradients of weights over row spans of different widths, one launch for all of them.
//
// dw[n, k] = sum of dy[r, n] * x[r, k] over the rows r of all spans with more than n outputs and more than k inputs.
// Every element is written once; where no span reaches, with 0.
#pragma once

#include <vector>

#include "cpu/gemm.h"

namespace dynabert::cpu {

// Columns begin to end - 1, all within one border: a span reaches all of them or none.
struct Piece {
  int64_t begin, end;
};

// Pointers with strides in elements from row to row; columns lie side by side.
struct WeightGemm {
  DType dtype;
  const void* dy;
  const void* x;
  void* dw;
  int64_t dy_stride, x_stride, dw_stride;
  const GemmSpan* spans;  // at most kSpanRows rows each
  int64_t num_spans;
  const Piece* strips;  // rows of dw
  const Piece* panels;  // columns of dw
  int64_t num_strips, num_panels, strip_block;
};

// What WeightGemm points to.
struct WeightPlan {
  std::vector<GemmSpan> spans;
  std::vector<Piece> strips, panels;
  int64_t reached_rows, reached_columns;  // of dw: the rest is for the caller to fill with 0
};

// Cuts the work for this many threads and returns the number of tasks. The result does not depend on the cut.
int64_t plan_weight_gemm(WeightGemm& gemm, WeightPlan& plan, const std::vector<GemmSpan>& spans, int64_t threads);

void run_weight_gemm(const WeightGemm& gemm, int64_t begin, int64_t end);

// out[j] = sum of column j over the rows of all spans with more than j columns, rows in their order, for columns begin
// to end - 1.
struct ColumnSums {
  DType dtype;
  const void* a;
  void* out;
  int64_t a_stride;
  const GemmSpan* spans;  // n columns each
  int64_t num_spans;
};
void run_column_sums(const ColumnSums& sums, int64_t begin, int64_t end);

// The widths of the spans, in order and once, after a 0: between two neighbours every span reaches all or nothing.
std::vector<int64_t> borders_of(const std::vector<GemmSpan>& spans, int64_t GemmSpan::* width);

}  // namespace dynabert::cpu
