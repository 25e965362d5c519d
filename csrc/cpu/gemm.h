// Matrix products over row spans of different widths, one launch for all of them.
//
// Row r of a span gives c[r, :n] = act(a[r, :k] . b[:n, :k]^T + bias[:n]) + residual[r, :n]. Weights (b) are read where
// they lie, through a strip of 16 or 32 rows that is turned in cache; nothing larger is ever copied.
#pragma once

#include "dynabert/element.h"

namespace dynabert::cpu {

struct GemmSpan {
  int64_t begin, end;  // rows
  int64_t n, k;        // active outputs and inputs; n >= 1, k >= 1
};

// Pointers with strides in elements from row to row; columns lie side by side.
struct SpanGemm {
  DType dtype;
  const void* a;
  const void* b;
  const void* bias;      // or null
  const void* residual;  // or null
  void* c;
  void* pre;  // value before the activation, or null
  int64_t a_stride, b_stride, residual_stride, c_stride, pre_stride;
  Activation activation;
  const GemmSpan* spans;
  int64_t num_spans;
  // The gradient of the inputs: b is (k, n), and c[r, :n] = (a[r, :k] . b[:k, :n]) * act'(slope_at[r, :n]) +
  // residual[r, :n]. bias and pre are not used.
  bool gradient;
  const void* slope_at;  // or null: factor 1
  void* activated;       // receives act(slope_at), or null
  int64_t slope_stride, activated_stride;
  // 0: b lies row by row. Else b is packed, see packed_panel, and this is how many inputs it has; b_stride is not used.
  int64_t packed_inputs;
  // Set by plan_gemm; `panel`: outputs of a panel.
  int64_t row_block, row_blocks, panels, panel, first_row;
};

// Whether the kernels of the instruction set in use compute this dtype, and do so faster than PyTorch's library.
bool has_gemm(DType dtype);

// How many outputs a panel of packed weights has with the instruction set in use, or 0 where weights of this dtype are
// best left as they are. Packed (n, k) weights are ceil(n / panel) panels one behind the other, each of them units
// along k, each of them one unit for every output of the panel: what a product otherwise brings into this order itself,
// again at every call. A unit is a float, or two neighbouring bfloat16; past n and k there is 0. The leading outputs
// are the leading panels, and the leading inputs the leading units of each panel, so that one buffer serves every
// width.
int64_t packed_panel(DType dtype);

// How many tasks a thread should have at the least, so that threads end together: tasks over spans of several widths
// differ in cost, and the last one may be a large one.
constexpr int64_t tasks_per_thread(int64_t num_spans) { return num_spans > 1 ? 12 : 2; }

// Rows and columns of a product through tile registers: two tiles each way.
constexpr int64_t kTileRows = 32;
constexpr int64_t whole_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// At least `blocks` blocks of rows, so many that whole blocks are a thread's share, where a block keeps enough rows for
// that: a thread then brings only rows of its own into the kernels' order. For weights that are in theirs already,
// which several blocks may read at no cost.
constexpr int64_t even_blocks(int64_t rows, int64_t blocks, int64_t panels, int64_t threads) {
  constexpr int64_t kFewestRows = 42;  // three strips: a panel is read from the cache for so many
  const int64_t even = (blocks + threads - 1) / threads * threads;
  return even == blocks || rows / even < kFewestRows || panels < 2 ? blocks : even;
}

// Cuts the work for this many threads and returns the number of tasks. The result does not depend on the cut.
int64_t plan_gemm(SpanGemm& gemm, int64_t threads);

void run_gemm(const SpanGemm& gemm, int64_t begin, int64_t end);

// What follows a product that PyTorch's library computed into c: bias, activation, residual, over rows begin to end
// - 1.
struct RowEpilogue {
  DType dtype;
  void* c;
  const void* bias;
  const void* residual;
  void* pre;
  int64_t c_stride, residual_stride, pre_stride;
  int64_t columns;
  Activation activation;
};
void run_epilogue(const RowEpilogue& epilogue, int64_t begin, int64_t end);

// c = gradient * act'(pre) + added, over rows begin to end - 1; activated receives act(pre).
struct RowGradient {
  DType dtype;
  const void* gradient;  // may be c
  const void* pre;       // or null: factor 1
  const void* added;     // or null; may be c
  void* c;
  void* activated;  // or null
  int64_t gradient_stride, pre_stride, added_stride, c_stride, activated_stride;
  int64_t columns;
  Activation activation;
};
void run_gradient(const RowGradient& gradient, int64_t begin, int64_t end);

}  // namespace dynabert::cpu
