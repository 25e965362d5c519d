// add_layer_norm's device code on the CPU against float64: every kernel shape that the library launches.
//
//   layer_norm [--sites] [--drop FILE:LINE] [--plant] [CASE]
//
// Prints one line for each case, with the largest error relative to the largest entry. Exit code 1 where an error is
// above rounding or something outside the rows was written. --plant reads one row too many: the address sanitizer must
// see it.
#include "matrix.h"

#include "dynabert/layer_norm.cuh"

namespace {

using namespace dynabert;
using namespace shim;

struct Case {
  const char* name;
  int rows, columns;
  int padding;  // elements between rows, poisoned
  int offset;   // elements before the first row, poisoned: takes the rows off 16-byte addresses
  bool residual;
};

bool planted = false;

template <class T, int kForwardThreads, int kRowsPerBlock, int kForwardValues, int kBackwardThreads, int kVector,
          int kSumLanes = 16>
void run(const Case& c) {
  constexpr float kEps = 1e-5f;
  constexpr int kBlocks = 2, kBackwardValues = 8;
  const int rows = c.rows, columns = c.columns;
  std::mt19937 random(7);
  const Matrix<T> rows_of_none(rows, columns, c.padding, c.offset), vector_of_none(1, columns, 0, c.offset);
  Matrix<T> x = rows_of_none, residual = x, dy = x, y = x, dx = x;
  Matrix<T> weight = vector_of_none, bias = weight, dw = weight, db = weight;
  for (Matrix<T>* input : {&x, &residual, &dy, &weight, &bias}) input->fill(random);
  std::vector<float> mean(rows), rstd(rows), partials(size_t(kBlocks) * 2 * columns);
  const T* added = c.residual ? residual.data() : nullptr;
  const int read_rows = planted ? rows + kRowsPerBlock : rows;

  shim::launch((read_rows + kRowsPerBlock - 1) / kRowsPerBlock, kForwardThreads * kRowsPerBlock, [&] {
    add_layer_norm_forward_kernel<T, kForwardThreads, kRowsPerBlock, kVector, kForwardValues / kVector>(
        x.data(), added, weight.data(), bias.data(), y.data(), mean.data(), rstd.data(), read_rows, columns, x.stride,
        residual.stride, y.stride, kEps);
  });
  shim::launch(kBlocks, kBackwardThreads, [&] {
    add_layer_norm_backward_kernel<T, kBackwardThreads, 1, kVector, kBackwardValues / kVector>(
        dy.data(), x.data(), added, weight.data(), mean.data(), rstd.data(), dx.data(), partials.data(), rows, columns,
        dy.stride, x.stride, residual.stride, dx.stride);
  });
  shim::launch(dim3((columns + 31) / 32, 2), 32 * kSumLanes, [&] {
    add_layer_norm_sum_partials_kernel<T, kSumLanes>(partials.data(), dw.data(), db.data(), kBlocks, columns);
  });

  Error y_error, mean_error, rstd_error, dx_error, dw_error, db_error;
  std::vector<double> dw_reference(columns), db_reference(columns);
  for (int r = 0; r < rows; ++r) {
    std::vector<double> xhat(columns), g(columns);
    double sum = 0, square = 0, g_sum = 0, gx_sum = 0;
    for (int i = 0; i < columns; ++i) sum += xhat[i] = x.value(r, i) + (c.residual ? residual.value(r, i) : 0.0);
    for (int i = 0; i < columns; ++i) square += (xhat[i] - sum / columns) * (xhat[i] - sum / columns);
    const double row_rstd = 1 / std::sqrt(square / columns + kEps);
    for (int i = 0; i < columns; ++i) {
      xhat[i] = (xhat[i] - sum / columns) * row_rstd;
      y_error.add(y.value(r, i), xhat[i] * weight.value(0, i) + bias.value(0, i));
      dw_reference[i] += dy.value(r, i) * xhat[i];
      db_reference[i] += dy.value(r, i);
      g[i] = dy.value(r, i) * weight.value(0, i);
      g_sum += g[i];
      gx_sum += g[i] * xhat[i];
    }
    for (int i = 0; i < columns; ++i) {
      dx_error.add(dx.value(r, i), row_rstd * (g[i] - g_sum / columns - xhat[i] * gx_sum / columns));
    }
    mean_error.add(mean[r], sum / columns);
    rstd_error.add(rstd[r], row_rstd);
  }
  for (int i = 0; i < columns; ++i) {
    dw_error.add(dw.value(0, i), dw_reference[i]);
    db_error.add(db.value(0, i), db_reference[i]);
  }
  report(c.name, "y", y_error, kLimit<T>);
  report(c.name, "mean", mean_error, 1e-6);
  report(c.name, "rstd", rstd_error, 1e-6);
  report(c.name, "dx", dx_error, kLimit<T>);
  report(c.name, "dw", dw_error, kLimit<T>);
  report(c.name, "db", db_error, kLimit<T>);
  for (Matrix<T>* output : {&y, &dx, &dw, &db}) {
    if (!output->intact()) {
      std::printf("%s WRONG: written outside the rows\n", c.name);
      failed = true;
    }
  }
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
  // The smallest team with barriers, several rows to a block: what the thread sanitizer is fast enough for.
  const Case pair{"float32-two-warps", 5, 100, 0, 0, true};
#ifndef __SANITIZE_THREAD__  // it has one case to run, and compiling the others takes longer than running it
  const Case one{"float32-one-column", 3, 1, 0, 0, false};    // fewer columns than threads; a variance of zero
  const Case prime{"float32-scalar", 5, 61, 3, 1, true};      // odd width, rows off 16-byte addresses
  const Case edge{"float32-vector", 5, 132, 4, 0, true};      // one pack past a warp's 32
  const Case base{"bfloat16-vector", 5, 768, 0, 0, true};     // BERT-base
  const Case odd{"float16-scalar", 3, 129, 0, 0, true};       // one column past a warp's four
  const Case wide{"bfloat16-block", 3, 1032, 0, 0, false};    // a block holds the row
  const Case wide_odd{"float32-block", 2, 1027, 0, 0, true};  // the same, element by element
  // Forward threads, rows per block, values per thread, backward threads, vector: as csrc/cuda/layer_norm.cu launches
  // them.
  if (wanted(one)) run<float, 32, 4, 32, 128, 1>(one);
  if (wanted(prime)) run<float, 32, 4, 32, 128, 1>(prime);
  if (wanted(edge)) run<float, 32, 4, 32, 128, 4>(edge);
  if (wanted(base)) run<__nv_bfloat16, 32, 4, 32, 128, 8>(base);
  if (wanted(odd)) run<__half, 32, 4, 32, 128, 1>(odd);
  if (wanted(wide)) run<__nv_bfloat16, 128, 1, 32, 512, 8>(wide);
  if (wanted(wide_odd)) run<float, 128, 1, 32, 512, 1>(wide_odd);
#endif
  if (wanted(pair)) run<float, 64, 1, 32, 64, 1, 2>(pair);
  shim::print_sites();
  return failed ? 1 : 0;
}
