// distillation_loss's device code on the CPU against float64: every kernel shape that the library launches.
//
//   distillation_loss [--sites] [--drop FILE:LINE] [--plant] [CASE]
//
// Prints a line for each case, kind and result, with the largest error relative to the largest entry. Exit code 1 where
// an error is above rounding or something outside the rows was written. --plant names a teacher row past the last: the
// address sanitizer must see that it is read.
#include "matrix.h"

#include "dynabert/distillation_loss.cuh"

namespace {

using namespace dynabert;
using namespace shim;

struct Case {
  const char* name;
  int columns;
  int padding;  // elements between rows, poisoned
  int offset;   // elements before the first row, poisoned: takes the rows off 16-byte addresses
  bool mapped;  // with a map of teacher rows and active numbers; else a row has the teacher row of its own number
};

bool planted = false;

// Groups of 3, 0, 2 and 1 rows, and one row of no group. The last group is not active where the case is mapped.
constexpr int kRows = 7, kGroups = 4;
const int32_t kBorders[kGroups + 1] = {0, 3, 3, 5, 6};
const int32_t kActive[kGroups] = {12, 1, 3, 0};

template <class T, int kThreads, int kRowsPerBlock, int kValues, int kVector, bool kSoft, int kSumThreads>
void run_kind(const Case& c) {
  constexpr int kPacks = kValues / kVector;
  const int columns = c.columns, teachers = c.mapped ? 3 : kRows;
  const std::string name = std::string(c.name) + (kSoft ? " soft" : " squared");
  // Row 2 counts nothing. What the last two rows say must not be read.
  const std::vector<int32_t> map = {1, planted ? teachers : 0, -1, 1, 0, 1000000, 1000000};
  const std::vector<int32_t> borders(kBorders, kBorders + kGroups + 1), active(kActive, kActive + kGroups);
  const RowMatch match = {borders.data(), c.mapped ? map.data() : nullptr, c.mapped ? active.data() : nullptr, kGroups};
  const auto partner_of = [&](int row) {
    if (row == 6 || (c.mapped && row == 5)) return -1;
    return c.mapped ? map[row] : row;
  };

  std::mt19937 random(7);
  Matrix<T> student(kRows, columns, c.padding, c.offset), teacher(teachers, columns, c.padding, c.offset);
  Matrix<T> dstudent(kRows, columns, c.padding, c.offset);
  for (int r = 0; r < kRows; ++r) {
    if (partner_of(r) < 0) continue;  // stays NaN, and a teacher row that nobody asks for too
    student.fill_row(r, random);
    if (partner_of(r) < teachers) teacher.fill_row(partner_of(r), random);
  }
  std::vector<float> row_loss(kRows, std::numeric_limits<float>::quiet_NaN()), loss = row_loss;
  loss.resize(kGroups);
  const std::vector<float> dloss = {0.5f, -1.0f, 2.0f, -0.25f};

  const dim3 grid((kRows + kRowsPerBlock - 1) / kRowsPerBlock);
  shim::launch(grid, kThreads * kRowsPerBlock, [&] {
    distillation_loss_forward_kernel<T, kThreads, kRowsPerBlock, kVector, kPacks, kSoft>(
        student.data(), teacher.data(), row_loss.data(), match, kRows, columns, student.stride, teacher.stride);
  });
  shim::launch(kGroups, kSumThreads, [&] {
    distillation_loss_group_sum_kernel<kSumThreads>(row_loss.data(), loss.data(), borders.data(), kRows);
  });
  shim::launch(grid, kThreads * kRowsPerBlock, [&] {
    distillation_loss_backward_kernel<T, kThreads, kRowsPerBlock, kVector, kPacks, kSoft>(
        dloss.data(), student.data(), teacher.data(), dstudent.data(), match, kRows, columns, student.stride,
        teacher.stride, dstudent.stride);
  });

  Error loss_error, dstudent_error;
  for (int g = 0; g < kGroups; ++g) {
    double total = 0;
    for (int r = kBorders[g]; r < kBorders[g + 1]; ++r) {
      const int partner = partner_of(r);
      // Relative to an entry of the row: a softmax of one class is exactly 1.
      double s_sum = 0, t_sum = 0, s_first = 0, t_first = 0;
      for (int i = 0; partner >= 0 && i < columns; ++i) {
        if (i == 0) s_first = student.value(r, 0), t_first = teacher.value(partner, 0);
        s_sum += std::exp(student.value(r, i) - s_first);
        t_sum += std::exp(teacher.value(partner, i) - t_first);
      }
      for (int i = 0; i < columns; ++i) {
        double slope = 0;
        if (partner >= 0) {
          const double s = student.value(r, i), t = teacher.value(partner, i);
          const double p = std::exp(t - t_first) / t_sum;
          slope = kSoft ? std::exp(s - s_first) / s_sum - p : 2 * (s - t);
          total += kSoft ? -p * (s - s_first - std::log(s_sum)) : (s - t) * (s - t);
        }
        dstudent_error.add(dstudent.value(r, i), slope * double{dloss[g]});
      }
    }
    loss_error.add(loss[g], total);
  }
  for (int i = 0; i < columns; ++i) dstudent_error.add(dstudent.value(6, i), 0);  // of no group
  report(name.c_str(), "loss", loss_error, 1e-6);
  // A softmax of one class has no gradient; of few classes, one that cancels.
  report(name.c_str(), "dstudent", dstudent_error, std::max(kLimit<T>, 2e-6));
  if (!dstudent.intact()) {
    std::printf("%s WRONG: written outside the rows\n", name.c_str());
    failed = true;
  }
}

template <class T, int kThreads, int kRowsPerBlock, int kValues, int kVector, int kSumThreads = 256>
void run(const Case& c) {
  run_kind<T, kThreads, kRowsPerBlock, kValues, kVector, true, kSumThreads>(c);
  run_kind<T, kThreads, kRowsPerBlock, kValues, kVector, false, kSumThreads>(c);
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
  // The smallest team with barriers: what the thread sanitizer is fast enough for.
  const Case pair{"float32-two-warps", 100, 0, 0, true};
#ifndef __SANITIZE_THREAD__  // it has one case to run, and compiling the others takes longer than running it
  const Case one{"float32-one-column", 1, 0, 0, true};   // a softmax of one class
  const Case logits{"bfloat16-logits", 3, 2, 1, true};   // fewer columns than threads
  const Case prime{"float32-scalar", 61, 3, 1, true};    // odd width, rows off 16-byte addresses
  const Case edge{"float32-vector", 132, 4, 0, false};   // one pack past a warp's 32
  const Case base{"bfloat16-vector", 768, 0, 0, true};   // BERT-base
  const Case odd{"float16-scalar", 129, 0, 0, true};     // one column past a warp's: a block, element by element
  const Case wide{"bfloat16-block", 1032, 0, 0, false};  // a block holds the row
  // Threads, rows per block, values per thread, vector: as csrc/cuda/distillation_loss.cu launches them.
  if (wanted(one)) run<float, 32, 4, 4, 1>(one);
  if (wanted(logits)) run<__nv_bfloat16, 32, 4, 4, 1>(logits);
  if (wanted(prime)) run<float, 32, 4, 4, 1>(prime);
  if (wanted(edge)) run<float, 32, 4, 32, 4>(edge);
  if (wanted(base)) run<__nv_bfloat16, 32, 4, 32, 8>(base);
  if (wanted(odd)) run<__half, 256, 1, 16, 1>(odd);
  if (wanted(wide)) run<__nv_bfloat16, 128, 1, 32, 8>(wide);
#endif
  if (wanted(pair)) run<float, 64, 1, 4, 1, 64>(pair);
  shim::print_sites();
  return failed ? 1 : 0;
}
