#include "cuda/distillation_loss.h"

#include <string>

#include "cuda/packs.h"
#include "dynabert/distillation_loss.cuh"

namespace dynabert::cuda {
namespace {

// Not timed on a card yet; chosen by registers (no spills on sm_80 and sm_90a) and by bytes in flight. A warp holds a
// row up to `warp_columns`, above that a block does. Rows that packs of 16 bytes do not fit are logits, a few columns
// wide, or of an odd width: a warp takes few elements a thread then, and a block has twice the threads, since single
// elements need a predicate each.
template <int kVector>
struct Shape {
  static constexpr int warp_values = kVector == 1 ? 4 : 32;
  static constexpr int warp_columns = 32 * warp_values;
  static constexpr int rows_per_block = 4;  // rows of one warp each that share a block
  static constexpr int block_threads = kVector == 1 ? 256 : 128;
  static constexpr int block_values = static_cast<int>(kMaxDistillationLossColumns) / block_threads;
};
constexpr int kSumThreads = 256;

template <class T, int kVector, bool kSoft>
constexpr auto* kForwardWarp = &distillation_loss_forward_kernel<T, 32, Shape<kVector>::rows_per_block, kVector,
                                                                 Shape<kVector>::warp_values / kVector, kSoft>;
template <class T, int kVector, bool kSoft>
constexpr auto* kForwardBlock = &distillation_loss_forward_kernel<T, Shape<kVector>::block_threads, 1, kVector,
                                                                  Shape<kVector>::block_values / kVector, kSoft>;
template <class T, int kVector, bool kSoft>
constexpr auto* kBackwardWarp = &distillation_loss_backward_kernel<T, 32, Shape<kVector>::rows_per_block, kVector,
                                                                   Shape<kVector>::warp_values / kVector, kSoft>;
template <class T, int kVector, bool kSoft>
constexpr auto* kBackwardBlock = &distillation_loss_backward_kernel<T, Shape<kVector>::block_threads, 1, kVector,
                                                                    Shape<kVector>::block_values / kVector, kSoft>;

struct Grid {
  bool warps;
  int64_t blocks;
  int threads;
};

template <int kVector>
Grid grid_of(const DistillationLoss& a) {
  using S = Shape<kVector>;
  if (a.columns > S::warp_columns) return {false, a.num_rows, S::block_threads};
  return {true, (a.num_rows + S::rows_per_block - 1) / S::rows_per_block, 32 * S::rows_per_block};
}

RowMatch match_of(const DistillationLoss& a) {
  return {a.rows, a.teacher_rows, a.active, static_cast<int>(a.num_groups)};
}

template <class T, int kVector, bool kSoft>
cudaError_t forward(const DistillationLoss& a, float* row_loss, cudaStream_t stream) {
  const Grid grid = grid_of<kVector>(a);
  if (grid.blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto kernel = grid.warps ? kForwardWarp<T, kVector, kSoft> : kForwardBlock<T, kVector, kSoft>;
  kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, 0, stream>>>(
      static_cast<const T*>(a.student), static_cast<const T*>(a.teacher), row_loss, match_of(a), a.num_rows,
      static_cast<int>(a.columns), a.student_stride, a.teacher_stride);
  return cudaGetLastError();
}

template <class T, int kVector, bool kSoft>
cudaError_t backward(const DistillationLoss& a, const float* dloss, void* dstudent, cudaStream_t stream) {
  const Grid grid = grid_of<kVector>(a);
  if (grid.blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto kernel = grid.warps ? kBackwardWarp<T, kVector, kSoft> : kBackwardBlock<T, kVector, kSoft>;
  kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, 0, stream>>>(
      dloss, static_cast<const T*>(a.student), static_cast<const T*>(a.teacher), static_cast<T*>(dstudent), match_of(a),
      a.num_rows, static_cast<int>(a.columns), a.student_stride, a.teacher_stride, a.columns);
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_of(const DistillationLoss& a, float* row_loss, cudaStream_t stream) {
  constexpr int kVector = kWidestVector<T>;
  if (packs_fit<T>(a.columns, {a.student, a.teacher}, {a.student_stride, a.teacher_stride})) {
    return a.squared_error ? forward<T, kVector, false>(a, row_loss, stream)
                           : forward<T, kVector, true>(a, row_loss, stream);
  }
  return a.squared_error ? forward<T, 1, false>(a, row_loss, stream) : forward<T, 1, true>(a, row_loss, stream);
}

template <class T>
cudaError_t backward_of(const DistillationLoss& a, const float* dloss, void* dstudent, cudaStream_t stream) {
  constexpr int kVector = kWidestVector<T>;
  if (packs_fit<T>(a.columns, {a.student, a.teacher, dstudent}, {a.student_stride, a.teacher_stride})) {
    return a.squared_error ? backward<T, kVector, false>(a, dloss, dstudent, stream)
                           : backward<T, kVector, true>(a, dloss, dstudent, stream);
  }
  return a.squared_error ? backward<T, 1, false>(a, dloss, dstudent, stream)
                         : backward<T, 1, true>(a, dloss, dstudent, stream);
}

template <class T, int kVector, bool kSoft>
void append_kernels(std::vector<KernelHandle>& kernels, const std::string& dtype) {
  const auto add = [&](const char* name, int threads, auto* kernel) {
    kernels.push_back({std::string(name) + "<" + dtype + ", " + std::to_string(threads) + " threads, vector " +
                           std::to_string(kVector) + (kSoft ? ", soft cross-entropy>" : ", squared error>"),
                       reinterpret_cast<const void*>(kernel)});
  };
  add("distillation_loss_forward", 32, kForwardWarp<T, kVector, kSoft>);
  add("distillation_loss_forward", Shape<kVector>::block_threads, kForwardBlock<T, kVector, kSoft>);
  add("distillation_loss_backward", 32, kBackwardWarp<T, kVector, kSoft>);
  add("distillation_loss_backward", Shape<kVector>::block_threads, kBackwardBlock<T, kVector, kSoft>);
}

template <class T>
void append_kernels_of(std::vector<KernelHandle>& kernels, const std::string& dtype) {
  append_kernels<T, 1, false>(kernels, dtype);
  append_kernels<T, 1, true>(kernels, dtype);
  append_kernels<T, kWidestVector<T>, false>(kernels, dtype);
  append_kernels<T, kWidestVector<T>, true>(kernels, dtype);
}

}  // namespace

cudaError_t distillation_loss_forward(DType dtype, const DistillationLoss& arguments, float* row_loss, float* loss,
                                      cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;  // float64: the reference takes it
  if (dtype == DType::kFloat32) status = forward_of<float>(arguments, row_loss, stream);
  if (dtype == DType::kBFloat16) status = forward_of<__nv_bfloat16>(arguments, row_loss, stream);
  if (dtype == DType::kFloat16) status = forward_of<__half>(arguments, row_loss, stream);
  if (status != cudaSuccess) return status;
  distillation_loss_group_sum_kernel<kSumThreads>
      <<<static_cast<unsigned>(arguments.num_groups), kSumThreads, 0, stream>>>(row_loss, loss, arguments.rows,
                                                                                arguments.num_rows);
  return cudaGetLastError();
}

cudaError_t distillation_loss_backward(DType dtype, const DistillationLoss& arguments, const float* dloss,
                                       void* dstudent, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return backward_of<float>(arguments, dloss, dstudent, stream);
    case DType::kBFloat16:
      return backward_of<__nv_bfloat16>(arguments, dloss, dstudent, stream);
    case DType::kFloat16:
      return backward_of<__half>(arguments, dloss, dstudent, stream);
    case DType::kFloat64:
      break;  // the reference takes it
  }
  return cudaErrorInvalidValue;
}

std::vector<KernelHandle> distillation_loss_kernels() {
  std::vector<KernelHandle> kernels;
  append_kernels_of<float>(kernels, "float32");
  append_kernels_of<__nv_bfloat16>(kernels, "bfloat16");
  append_kernels_of<__half>(kernels, "float16");
  kernels.push_back(
      {"distillation_loss_group_sum", reinterpret_cast<const void*>(&distillation_loss_group_sum_kernel<kSumThreads>)});
  return kernels;
}

}  // namespace dynabert::cuda
