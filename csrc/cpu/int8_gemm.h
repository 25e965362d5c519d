// Products of int8 over row spans of different widths, and the quantisation of the rows that go in.
//
// Weights are quantised once: b[o, i] = round(w[o, i] / scale[chunk of i, o]), from -127 to 127. A chunk is a run of
// inputs with a scale of its own, so that the leading chunks mean the same with and without the others. Activations are
// quantised row by row: a[r, i] = round(x[r, i] / a_scale[r]), stored as a + 128.
//   c[r, :n] = act((sum over chunks of (sum over i of a[r, i] b[o, i]) scale[chunk, o]) a_scale[r] + bias[o])
// The inner sums are exact integers, the same on every processor.
#pragma once

#include "cpu/gemm.h"

namespace dynabert::cpu {

constexpr int64_t kInt8Panel = 32;  // outputs side by side in the packed weights
constexpr int64_t kInt8Unit = 4;    // inputs side by side: what one lane of a dot product of bytes takes
constexpr uint8_t kInt8Zero = 128;  // how a 0 among the activations is stored

// The inputs of a product, cut into chunks. Each takes `units` units in memory, so it may end with unused bytes.
struct Int8Chunks {
  int64_t inputs;  // of one chunk
  int64_t units;

  int64_t of(int64_t k) const { return (k + inputs - 1) / inputs; }
  int64_t bytes(int64_t k) const { return of(k) * units * kInt8Unit; }
};

// How many units of a chunk go through tile registers at once: the most, from 8 to 16, that divide it. 0: there is no
// such number, or the chunk is so short that storing its sums costs more than tiles save.
inline int64_t units_of_a_tile(int64_t units) {
  if (units < 12) return 0;
  for (int64_t part = 16; part >= 8; --part) {
    if (units % part == 0) return part;
  }
  return 0;
}

struct Int8Gemm {
  DType dtype;  // of bias and c: float32 or bfloat16
  const uint8_t* a;
  const float* a_scale;
  int64_t a_stride;
  const int8_t* b;        // (panels, chunks, units, kInt8Panel, kInt8Unit)
  const float* scale;     // (chunks, columns)
  const int32_t* offset;  // (chunks, columns): -128 times the sum of the chunk's weights
  int64_t columns;        // outputs, rounded up to whole panels
  int64_t chunks;         // of all inputs
  Int8Chunks cut;
  const void* bias;
  void* c;
  int64_t c_stride;
  Activation activation;
  const GemmSpan* spans;
  int64_t num_spans;
  // Set by plan_int8_gemm.
  int64_t row_block, row_blocks, panels, first_row;
  bool tiles;  // through tile registers; the result is the same
};

// Cuts the work for this many threads and returns the number of tasks. The result does not depend on the cut.
int64_t plan_int8_gemm(Int8Gemm& gemm, int64_t threads);

void run_int8_gemm(const Int8Gemm& gemm, int64_t begin, int64_t end);

// Rows of k numbers to bytes. What is left of the last chunk that they reach becomes 0.
struct Int8Rows {
  DType dtype;
  const void* x;
  int64_t x_stride;
  int64_t k;
  Int8Chunks cut;
  uint8_t* a;
  int64_t a_stride;
  float* scale;  // largest magnitude of the row over 127; not finite where the row is not
};

void run_int8_rows(const Int8Rows& rows, int64_t begin, int64_t end);

}  // namespace dynabert::cpu
