// embed_layer_norm's device code on the CPU against float64: every kernel shape that the library launches.
//
//   embedding [--sites] [--drop FILE:LINE] [--plant] [CASE]
//
// Prints one line for each case and result, with the largest error relative to the largest entry. Exit code 1 where an
// error is above rounding, a mask is not Philox's, or a table's unused row was touched. --plant takes one token too
// many: the address sanitizer must see it.
#include "host_shim.h"

#include "dynabert/embedding.cuh"
#include "dynabert/layer_norm.cuh"
#include "dynabert/sums_by_id.cuh"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

namespace {

using namespace dynabert;

constexpr int kSizes[kEmbeddingTables] = {9, 7, 2};  // word, position, type
constexpr int kPaddingId = 0;

struct Case {
  const char* name;
  int tokens, columns;
  int padding;  // elements between rows of the tables and of dy, poisoned
  bool types;
  bool dropout;
  std::vector<int32_t> rows;  // borders; empty: one group
  int64_t bad = -1;           // a token whose word is outside the table
};

template <class T>
constexpr double kLimit = 1e-6;
template <>
constexpr double kLimit<__nv_bfloat16> = 1.01 / 256;
template <>
constexpr double kLimit<__half> = 1.01 / 2048;

bool failed = false;
bool planted = false;

void wrong(const Case& c, const char* what) {
  std::printf("%s WRONG: %s\n", c.name, what);
  failed = true;
}

// A matrix whose gaps are NaN: a read of one shows in every result.
template <class T>
struct Matrix {
  int columns, stride;
  std::vector<T> storage;
  Matrix(int rows, int columns_, int padding)
      : columns(columns_),
        stride(columns_ + padding),
        storage(size_t(rows) * stride, from_float<T>(std::numeric_limits<float>::quiet_NaN())) {}
  T* data() { return storage.data(); }
  T& at(int64_t row, int column) { return storage[size_t(row) * stride + column]; }
  double value(int64_t row, int column) { return to_float(at(row, column)); }
  void fill(std::mt19937& random, int rows) {
    std::normal_distribution<float> normal;
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) at(r, c) = from_float<T>(normal(random));
    }
  }
};

struct Error {
  double largest = 0, error = 0;
  void add(double actual, double reference) {
    if (reference != reference && actual != actual) return;
    largest = std::max(largest, std::abs(reference));
    // Not std::max: a NaN must win.
    if (!(std::abs(actual - reference) <= error)) error = std::abs(actual - reference);
  }
};

void report(const Case& c, const char* what, const Error& error, double limit) {
  const double relative = error.error / std::max(error.largest, 1e-30);
  std::printf("%s %s %.2e\n", c.name, what, relative);
  if (!(relative <= limit)) wrong(c, what);
}

// Philox by the book, one word at a time and with a counter array, so that a slip in the kernel's does not cancel.
uint32_t philox_word(uint64_t seed, uint32_t column, uint32_t position, uint32_t stream, uint32_t offset) {
  uint32_t counter[4] = {column / 4, position, stream, offset};
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ counter[1] ^ key[0], uint32_t(b),
                              uint32_t(a >> 32) ^ counter[3] ^ key[1], uint32_t(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter[column % 4];
}

template <class T, int kForwardThreads, int kRowsPerBlock, int kForwardValues, int kBackwardThreads, int kVector,
          int kChunk, int kSumLanes = 16, int kJoinLanes = 8, int kPieceThreads = 96>
void run(const Case& c) {
  constexpr float kEps = 1e-5f;
  constexpr int kBlocks = 2, kBackwardValues = 8, kPieceVector = kVector == 1 ? 1 : 4;
  const int tokens = c.tokens, columns = c.columns, kinds = c.types ? 3 : 2;
  std::mt19937 random(7);
  std::vector<Matrix<T>> tables, gradients;
  for (int size : kSizes) {
    tables.emplace_back(size, columns, c.padding);
    tables.back().fill(random, size);
    gradients.emplace_back(size, columns, 0);
    std::fill(gradients.back().storage.begin(), gradients.back().storage.end(), from_float<T>(0.0f));
  }
  Matrix<T> dy(tokens, columns, c.padding), y(tokens, columns, 0), weight(1, columns, 0), bias(1, columns, 0);
  Matrix<T> dw(1, columns, 0), db(1, columns, 0);
  dy.fill(random, tokens);
  weight.fill(random, 1);
  bias.fill(random, 1);
  std::vector<std::vector<int64_t>> ids(kEmbeddingTables, std::vector<int64_t>(tokens));
  for (int t = 0; t < tokens; ++t) {
    // Most tokens share a word, so that its run has several pieces; some words are not used.
    ids[0][t] = t % 3 != 0 ? 4 : random() % 6;
    ids[1][t] = t % 5;
    ids[2][t] = t % 2;
  }
  if (c.bad >= 0) ids[0][c.bad] = c.bad % 2 ? -1 : kSizes[0];
  const std::vector<int64_t> state = {0x123456789abcdef, 0xfffffffe};  // the group carries the low word over
  const double p = 0.4;
  RowDropout dropout = {};
  if (c.dropout) {
    dropout.state = state.data();
    dropout.rows = c.rows.empty() ? nullptr : c.rows.data();
    dropout.num_groups = static_cast<int>(c.rows.size()) - 1;
    dropout.stream = 3u << 12;
    dropout.threshold = static_cast<uint32_t>(p * 4294967296.0);
    dropout.scale = static_cast<float>(1 / (1 - p));
  }
  EmbeddingTables<T> lookups = {};
  for (int i = 0; i < kEmbeddingTables; ++i) {
    lookups.ids[i] = i < kinds ? ids[i].data() : nullptr;
    lookups.table[i] = i < kinds ? tables[i].data() : nullptr;
    lookups.size[i] = i < kinds ? kSizes[i] : -1;
    lookups.stride[i] = tables[i].stride;
  }
  std::vector<float> mean(tokens), rstd(tokens), dh(size_t(tokens) * columns), partials(size_t(kBlocks) * 2 * columns);
  const int read_tokens = planted ? tokens + kRowsPerBlock : tokens;

  shim::launch((read_tokens + kRowsPerBlock - 1) / kRowsPerBlock, kForwardThreads * kRowsPerBlock, [&] {
    embed_layer_norm_forward_kernel<T, kForwardThreads, kRowsPerBlock, kVector, kForwardValues / kVector>(
        lookups, dropout, weight.data(), bias.data(), y.data(), mean.data(), rstd.data(), read_tokens, columns, kEps);
  });
  shim::launch(kBlocks, kBackwardThreads, [&] {
    embed_layer_norm_backward_kernel<T, kBackwardThreads, 1, kVector, kBackwardValues / kVector>(
        lookups, dropout, dy.data(), weight.data(), mean.data(), rstd.data(), dh.data(), partials.data(), tokens,
        columns, dy.stride);
  });
  shim::launch(dim3((columns + 31) / 32, 2), 32 * kSumLanes, [&] {
    add_layer_norm_sum_partials_kernel<T, kSumLanes>(partials.data(), dw.data(), db.data(), kBlocks, columns);
  });
  std::vector<int64_t> sorted, order;
  for (int i = 0; i < kinds; ++i) {
    std::vector<int64_t> places(tokens);
    std::iota(places.begin(), places.end(), 0);
    std::stable_sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return ids[i][a] < ids[i][b]; });
    for (int64_t place : places) {
      sorted.push_back(ids[i][place]);
      order.push_back(place);
    }
  }
  const int chunks = (tokens + kChunk - 1) / kChunk;
  std::vector<float> pieces(size_t(kinds) * 2 * chunks * columns, std::numeric_limits<float>::quiet_NaN());
  SumOutputs<T> outputs = {};
  for (int i = 0; i < kinds; ++i) {
    outputs.out[i] = gradients[i].data();
    outputs.size[i] = kSizes[i];
  }
  outputs.left_out = kPaddingId;
  shim::launch(dim3(tokens, kinds), kPieceThreads, [&] {
    sum_pieces_kernel<T, kPieceThreads, kChunk, kPieceVector>(dh.data(), sorted.data(), order.data(), pieces.data(),
                                                              outputs, tokens, columns);
  });
  if (chunks > 1) {
    shim::launch(dim3(chunks - 1, (columns + 31) / 32, kinds), 32 * kJoinLanes, [&] {
      join_pieces_kernel<T, kChunk, kJoinLanes>(sorted.data(), pieces.data(), outputs, tokens, columns);
    });
  }

  Error y_error, mean_error, rstd_error, dw_error, db_error, table_error[kEmbeddingTables];
  std::vector<double> dw_reference(columns), db_reference(columns);
  std::vector<std::vector<double>> exact;
  for (int size : kSizes) exact.emplace_back(size_t(size) * columns);
  for (int t = 0; t < tokens; ++t) {
    if (t == c.bad) {
      // Its row is NaN, and dw and db with it; what follows is about the others.
      for (int i = 0; i < columns; ++i) {
        if (y.value(t, i) == y.value(t, i)) return wrong(c, "the token outside its table is not NaN");
      }
      std::printf("%s bad token shows\n", c.name);
      return;
    }
    int group = -1;
    for (int g = 0; g < dropout.num_groups; ++g) group = c.rows[g] <= t && t < c.rows[g + 1] ? g : group;
    if (dropout.rows == nullptr) group = 0;
    std::vector<double> xhat(columns), g(columns), factor(columns, 1.0);
    double sum = 0, square = 0, g_sum = 0, gx_sum = 0;
    for (int i = 0; i < columns; ++i) {
      for (int k = 0; k < kinds; ++k) xhat[i] += tables[k].value(ids[k][t], i);
      sum += xhat[i];
      if (!c.dropout || group < 0) continue;
      const uint32_t position = t - (dropout.rows == nullptr ? 0 : c.rows[group]);
      const uint32_t word = philox_word(state[0], i, position, 3u << 12, uint32_t(state[1] + group));
      factor[i] = word >= dropout.threshold ? 1 / (1 - p) : 0.0;
    }
    for (int i = 0; i < columns; ++i) square += (xhat[i] - sum / columns) * (xhat[i] - sum / columns);
    const double row_rstd = 1 / std::sqrt(square / columns + kEps);
    for (int i = 0; i < columns; ++i) {
      xhat[i] = (xhat[i] - sum / columns) * row_rstd;
      y_error.add(y.value(t, i), factor[i] * (xhat[i] * weight.value(0, i) + bias.value(0, i)));
      const double arrived = dy.value(t, i) * factor[i];
      dw_reference[i] += arrived * xhat[i];
      db_reference[i] += arrived;
      g[i] = arrived * weight.value(0, i);
      g_sum += g[i];
      gx_sum += g[i] * xhat[i];
    }
    for (int i = 0; i < columns; ++i) {
      const double gradient = row_rstd * (g[i] - g_sum / columns - xhat[i] * gx_sum / columns);
      for (int k = 0; k < kinds; ++k) {
        if (k != 0 || ids[k][t] != kPaddingId) exact[k][ids[k][t] * columns + i] += gradient;
      }
    }
    mean_error.add(mean[t], sum / columns);
    rstd_error.add(rstd[t], row_rstd);
  }
  for (int i = 0; i < columns; ++i) {
    dw_error.add(dw.value(0, i), dw_reference[i]);
    db_error.add(db.value(0, i), db_reference[i]);
  }
  for (int k = 0; k < kinds; ++k) {
    for (int row = 0; row < kSizes[k]; ++row) {
      for (int i = 0; i < columns; ++i) table_error[k].add(gradients[k].value(row, i), exact[k][row * columns + i]);
    }
  }
  report(c, "y", y_error, kLimit<T>);
  report(c, "mean", mean_error, 1e-6);
  report(c, "rstd", rstd_error, 1e-6);
  report(c, "dw", dw_error, kLimit<T>);
  report(c, "db", db_error, kLimit<T>);
  report(c, "dword", table_error[0], kLimit<T>);
  report(c, "dposition", table_error[1], kLimit<T>);
  if (c.types) report(c, "dtype", table_error[2], kLimit<T>);
}

}  // namespace

int main(int argc, char** argv) {
  std::string only;
  for (const std::string& argument : shim::arguments(argc, argv)) {
    if (argument == "--plant") {
      planted = true;
    } else {
      only = argument;
    }
  }
  const auto wanted = [&](const Case& c) { return only.empty() || only == c.name; };
  // The smallest team with barriers, runs in several pieces: what the thread sanitizer is fast enough for.
  const Case pair{"float32-two-warps", 6, 68, 0, true, true, {0, 2, 5}};
#ifndef __SANITIZE_THREAD__  // it has one case to run, and compiling the others takes longer than running it
  const Case prime{"float32-scalar", 7, 61, 3, true, true, {0, 3, 3, 6}};  // an empty group, a row of none
  const Case edge{"float32-vector", 5, 132, 4, false, false, {}};          // one pack past a warp's 32, no types
  const Case base{"bfloat16-vector", 5, 768, 0, true, true, {}};           // BERT-base, one group
  const Case odd{"float16-scalar", 3, 129, 0, true, false, {}};            // one column past a turn of the block
  const Case wide{"bfloat16-block", 3, 1032, 0, true, true, {0, 3}};       // a block holds the row
  const Case below{"float32-id-below", 4, 36, 0, true, false, {}, 1};      // -1
  const Case above{"float32-id-above", 4, 36, 0, true, false, {}, 2};      // the table's size
  // Forward threads, rows per block, values per thread, backward threads, vector: as csrc/cuda/embedding.cu launches
  // them. Chunks are smaller, so that few rows make runs of several pieces.
  if (wanted(prime)) run<float, 128, 1, 8, 128, 1, 2>(prime);
  if (wanted(edge)) run<float, 32, 4, 32, 128, 4, 2>(edge);
  if (wanted(base)) run<__nv_bfloat16, 32, 4, 32, 128, 8, 32>(base);
  if (wanted(odd)) run<__half, 128, 1, 8, 128, 1, 32>(odd);
  if (wanted(wide)) run<__nv_bfloat16, 128, 1, 32, 512, 8, 2>(wide);
  if (wanted(below)) run<float, 32, 4, 32, 128, 4, 2>(below);
  if (wanted(above)) run<float, 32, 4, 32, 128, 4, 2>(above);
#endif
  if (wanted(pair)) run<float, 64, 1, 32, 64, 4, 2, 2, 2, 32>(pair);
  shim::print_sites();
  return failed ? 1 : 0;
}
