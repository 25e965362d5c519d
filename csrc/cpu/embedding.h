// Embeddings and their LayerNorm, row by row: pointers, sizes and strides in elements. Callers share rows out.
#pragma once

#include "dynabert/element.h"

namespace dynabert::cpu {

// One table, and which of its rows each token takes.
struct Lookup {
  bool present;        // false: this lookup takes no part
  const void* table;   // (size, columns)
  const int64_t* ids;  // (tokens), or null: row 0 for every token
  int64_t size;
  int64_t stride;
};
constexpr int kLookups = 3;  // word, position, type

// Rows `begin` to `end` - 1 are dropped as group `group`. Rows of no such range are not dropped.
struct DropoutRows {
  int64_t begin, end, group;
};

// h = the sum of the lookups; y = factor * ((h - mean) * rstd * weight + bias), factor from dropout.
struct EmbeddingForward {
  DType dtype;
  Lookup lookups[kLookups];
  const void* weight;  // (columns)
  const void* bias;    // (columns)
  void* y;             // (tokens, columns) contiguous
  void* mean;          // (tokens) float32, float64 for float64
  void* rstd;
  int64_t columns;
  double eps;
  Dropout dropout;
  const DropoutRows* groups;  // ascending
  int64_t num_groups;         // 0 without dropout
};

// Works on tokens begin to end - 1. Returns the first of them that has an id outside its table, whose row and those
// after it are not written; -1 where there is none.
int64_t embedding_forward(const EmbeddingForward& arguments, int64_t begin, int64_t end);

struct EmbeddingBackward {
  DType dtype;
  Lookup lookups[kLookups];
  const void* dy;      // (tokens, columns)
  const void* weight;  // (columns)
  const void* mean;    // (tokens)
  const void* rstd;    // (tokens)
  void* dtotal;        // (tokens, columns) of the wide type, contiguous: the gradient of h
  void* partials;      // (chunks, 2, columns) of the wide type: dw and db of each chunk of tokens
  int64_t tokens, columns, tokens_per_chunk;
  int64_t dy_stride;
  Dropout dropout;
  const DropoutRows* groups;
  int64_t num_groups;
};

// Works on chunks begin to end - 1. Returns as embedding_forward does.
int64_t embedding_backward(const EmbeddingBackward& arguments, int64_t begin, int64_t end);

// Tokens that take the same row of a table: sorted[begin] to sorted[end - 1], ascending.
struct TokenRun {
  int64_t id, begin, end;
};

// out[run.id] = the sum of dtotal over the run's tokens, for every run. Other rows are not touched.
struct EmbeddingSum {
  DType dtype;
  const void* dtotal;     // (tokens, columns) of the wide type
  const int64_t* sorted;  // (tokens)
  const TokenRun* runs;
  void* out;  // (size, columns) contiguous
  int64_t columns;
};

// A run's columns are shared out in slices, so that a token that is everywhere is not one thread's work.
constexpr int64_t kSumColumns = 128;

// Works on tasks begin to end - 1: task i is slice i % slices of run i / slices. The order of a sum does not depend on
// how tasks are shared out.
void embedding_sum(const EmbeddingSum& arguments, int64_t begin, int64_t end);

}  // namespace dynabert::cpu
