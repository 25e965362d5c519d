#include "cuda/layer_norm.h"

#include <algorithm>
#include <string>

#include "cuda/packs.h"
#include "dynabert/layer_norm.cuh"

namespace dynabert::cuda {
namespace {

// Not timed on a card yet; chosen by registers (no spills on sm_80 and sm_90a) and by bytes in flight, about 20 KB of
// loads per multiprocessor being what keeps the memory busy.
constexpr int kForwardValues = 32;         // elements a thread holds
constexpr int kForwardWarpColumns = 1024;  // 32 threads * 32 elements: up to here a warp holds a row
constexpr int kForwardRowsPerBlock = 4;    // rows of one warp each that share a block
constexpr int kForwardBlockThreads = 128;
constexpr int kBackwardValues = 8;  // beside them dw, db and the weight: 16 spill at 512 threads
// Blocks per multiprocessor are the grid and the register bound both. Each further block costs 2*C floats of partials.
constexpr int kBackwardNarrowThreads = 128, kBackwardNarrowBlocks = 4;  // up to 1024 columns
constexpr int kBackwardWideThreads = 512, kBackwardWideBlocks = 1;      // up to 4096 columns
constexpr int kSumLanes = 16;

static_assert(kForwardBlockThreads * kForwardValues == kMaxLayerNormColumns);
static_assert(kBackwardWideThreads * kBackwardValues == kMaxLayerNormColumns);

bool backward_is_narrow(int64_t columns) { return columns <= kBackwardNarrowThreads * kBackwardValues; }

template <class T, int kVector>
constexpr auto* kBackwardNarrow = &add_layer_norm_backward_kernel<T, kBackwardNarrowThreads, kBackwardNarrowBlocks,
                                                                  kVector, kBackwardValues / kVector>;
template <class T, int kVector>
constexpr auto* kBackwardWide =
    &add_layer_norm_backward_kernel<T, kBackwardWideThreads, kBackwardWideBlocks, kVector, kBackwardValues / kVector>;
template <class T, int kVector>
constexpr auto* kForwardWarp =
    &add_layer_norm_forward_kernel<T, 32, kForwardRowsPerBlock, kVector, kForwardValues / kVector>;
template <class T, int kVector>
constexpr auto* kForwardBlock =
    &add_layer_norm_forward_kernel<T, kForwardBlockThreads, 1, kVector, kForwardValues / kVector>;

template <class T, int kVector>
cudaError_t forward(const AddLayerNormForward& a, cudaStream_t stream) {
  const auto launch = [&](auto kernel, int threads, int rows_per_block) {
    const int64_t blocks = (a.rows + rows_per_block - 1) / rows_per_block;
    if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(blocks), threads * rows_per_block, 0, stream>>>(
        static_cast<const T*>(a.x), static_cast<const T*>(a.residual), static_cast<const T*>(a.weight),
        static_cast<const T*>(a.bias), static_cast<T*>(a.y), a.mean, a.rstd, a.rows, static_cast<int>(a.columns),
        a.x_stride, a.residual_stride, a.y_stride, a.eps);
    return cudaGetLastError();
  };
  return a.columns <= kForwardWarpColumns ? launch(kForwardWarp<T, kVector>, 32, kForwardRowsPerBlock)
                                          : launch(kForwardBlock<T, kVector>, kForwardBlockThreads, 1);
}

template <class T, int kVector>
cudaError_t backward(const AddLayerNormBackward& a, cudaStream_t stream) {
  const auto launch = [&](auto kernel, int threads) {
    kernel<<<a.num_partials, threads, 0, stream>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.x), static_cast<const T*>(a.residual),
        static_cast<const T*>(a.weight), a.mean, a.rstd, static_cast<T*>(a.dx), a.partials, a.rows,
        static_cast<int>(a.columns), a.dy_stride, a.x_stride, a.residual_stride, a.dx_stride);
    return cudaGetLastError();
  };
  const cudaError_t status = backward_is_narrow(a.columns) ? launch(kBackwardNarrow<T, kVector>, kBackwardNarrowThreads)
                                                           : launch(kBackwardWide<T, kVector>, kBackwardWideThreads);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>((a.columns + 31) / 32), 2);
  add_layer_norm_sum_partials_kernel<T, kSumLanes><<<grid, 32 * kSumLanes, 0, stream>>>(
      a.partials, static_cast<T*>(a.dw), static_cast<T*>(a.db), a.num_partials, static_cast<int>(a.columns));
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_of(const AddLayerNormForward& a, cudaStream_t stream) {
  const bool packs =
      packs_fit<T>(a.columns, {a.x, a.residual, a.weight, a.bias, a.y}, {a.x_stride, a.residual_stride, a.y_stride});
  return packs ? forward<T, kWidestVector<T>>(a, stream) : forward<T, 1>(a, stream);
}

template <class T>
cudaError_t backward_of(const AddLayerNormBackward& a, cudaStream_t stream) {
  const bool packs = packs_fit<T>(a.columns, {a.dy, a.x, a.residual, a.weight, a.dx},
                                  {a.dy_stride, a.x_stride, a.residual_stride, a.dx_stride});
  return packs ? backward<T, kWidestVector<T>>(a, stream) : backward<T, 1>(a, stream);
}

template <class T, int kVector>
void append_kernels(std::vector<KernelHandle>& kernels, const std::string& dtype) {
  const auto add = [&](const char* name, int threads, auto* kernel) {
    kernels.push_back({std::string(name) + "<" + dtype + ", " + std::to_string(threads) + " threads, vector " +
                           std::to_string(kVector) + ">",
                       reinterpret_cast<const void*>(kernel)});
  };
  add("add_layer_norm_forward", 32, kForwardWarp<T, kVector>);
  add("add_layer_norm_forward", kForwardBlockThreads, kForwardBlock<T, kVector>);
  add("add_layer_norm_backward", kBackwardNarrowThreads, kBackwardNarrow<T, kVector>);
  add("add_layer_norm_backward", kBackwardWideThreads, kBackwardWide<T, kVector>);
}

}  // namespace

cudaError_t add_layer_norm_forward(DType dtype, const AddLayerNormForward& arguments, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return forward_of<float>(arguments, stream);
    case DType::kBFloat16:
      return forward_of<__nv_bfloat16>(arguments, stream);
    case DType::kFloat16:
      return forward_of<__half>(arguments, stream);
    case DType::kFloat64:
      break;  // the reference takes it
  }
  return cudaErrorInvalidValue;
}

cudaError_t add_layer_norm_backward(DType dtype, const AddLayerNormBackward& arguments, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return backward_of<float>(arguments, stream);
    case DType::kBFloat16:
      return backward_of<__nv_bfloat16>(arguments, stream);
    case DType::kFloat16:
      return backward_of<__half>(arguments, stream);
    case DType::kFloat64:
      break;  // the reference takes it
  }
  return cudaErrorInvalidValue;
}

cudaError_t add_layer_norm_partials(int64_t rows, int64_t columns, int device, int* num_partials) {
  int multiprocessors = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks =
      int64_t{multiprocessors} * (backward_is_narrow(columns) ? kBackwardNarrowBlocks : kBackwardWideBlocks);
  *num_partials = static_cast<int>(std::min(rows, blocks));
  return status;
}

std::vector<KernelHandle> layer_norm_kernels() {
  std::vector<KernelHandle> kernels;
  append_kernels<float, 1>(kernels, "float32");
  append_kernels<float, kWidestVector<float>>(kernels, "float32");
  append_kernels<__nv_bfloat16, 1>(kernels, "bfloat16");
  append_kernels<__nv_bfloat16, kWidestVector<__nv_bfloat16>>(kernels, "bfloat16");
  append_kernels<__half, 1>(kernels, "float16");
  append_kernels<__half, kWidestVector<__half>>(kernels, "float16");
  const auto add = [&](const char* name, auto* kernel) {
    kernels.push_back(
        {std::string("add_layer_norm_sum_partials<") + name + ">", reinterpret_cast<const void*>(kernel)});
  };
  add("float32", &add_layer_norm_sum_partials_kernel<float, kSumLanes>);
  add("bfloat16", &add_layer_norm_sum_partials_kernel<__nv_bfloat16, kSumLanes>);
  add("float16", &add_layer_norm_sum_partials_kernel<__half, kSumLanes>);
  return kernels;
}

}  // namespace dynabert::cuda
