// What the host-shim programs share: matrices with poisoned gaps, and errors against float64.
#pragma once

#include "host_shim.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>

#include "dynabert/scalar.cuh"

namespace shim {

// Rounding to T, relative to the largest entry: half a step of its binade. float32 adds the error of its sums.
template <class T>
constexpr double kLimit = 1e-6;
template <>
constexpr double kLimit<__nv_bfloat16> = 1.01 / 256;
template <>
constexpr double kLimit<__half> = 1.01 / 2048;

inline bool failed = false;

// A matrix whose gaps are NaN: a read of one shows in every result, a write is found by `intact`.
template <class T>
struct Matrix {
  int rows, columns, stride, offset;
  std::vector<T> storage;
  // `padding`: elements between rows. `offset`: elements before the first row, which takes rows off 16-byte addresses.
  Matrix(int rows_, int columns_, int padding, int offset_)
      : rows(rows_),
        columns(columns_),
        stride(columns_ + padding),
        offset(offset_),
        storage(offset_ + size_t(rows_) * (columns_ + padding),
                dynabert::from_float<T>(std::numeric_limits<float>::quiet_NaN())) {
    storage.shrink_to_fit();
  }
  T* data() { return storage.data() + offset; }
  T& at(int row, int column) { return data()[size_t(row) * stride + column]; }
  double value(int row, int column) { return dynabert::to_float(at(row, column)); }
  void fill_row(int row, std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (int c = 0; c < columns; ++c) at(row, c) = dynabert::from_float<T>(normal(random));
  }
  void fill(std::mt19937& random) {
    for (int r = 0; r < rows; ++r) fill_row(r, random);
  }
  bool intact() {
    for (size_t i = 0; i < storage.size(); ++i) {
      const bool gap = i < size_t(offset) || (i - offset) % stride >= size_t(columns);
      const float value = dynabert::to_float(storage[i]);
      if (gap && value == value) return false;
    }
    return true;
  }
};

struct Error {
  double largest = 0, error = 0;
  void add(double actual, double reference) {
    largest = std::max(largest, std::abs(reference));
    // Not std::max: a NaN must win.
    if (!(std::abs(actual - reference) <= error)) error = std::abs(actual - reference);
  }
  double relative() const { return error / std::max(largest, 1e-30); }
};

inline void report(const char* name, const char* what, const Error& error, double limit) {
  std::printf("%s %s %.2e\n", name, what, error.relative());
  if (!(error.relative() <= limit)) {
    std::printf("%s %s WRONG: allowed %.2e\n", name, what, limit);
    failed = true;
  }
}

}  // namespace shim
