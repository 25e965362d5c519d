#include "cuda/kernel_attributes.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "cuda/distillation_loss.h"
#include "cuda/embedding.h"
#include "cuda/layer_norm.h"
#include "cuda/plan_table.h"

namespace dynabert::cuda {

std::vector<KernelAttributes> kernel_attributes() {
  std::vector<KernelHandle> kernels = layer_norm_kernels();
  for (const KernelHandle& kernel : distillation_loss_kernels()) kernels.push_back(kernel);
  for (const KernelHandle& kernel : embedding_kernels()) kernels.push_back(kernel);
  for (const KernelHandle& kernel : plan_table_kernels()) kernels.push_back(kernel);
  std::vector<KernelAttributes> found;
  for (const KernelHandle& kernel : kernels) {
    cudaFuncAttributes attributes;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel.function);
    if (status != cudaSuccess) {
      cudaGetLastError();  // a failed question must not look like a failed launch later
      throw std::runtime_error("kernel_attributes: the driver does not answer; asked for " + kernel.name + ", got \"" +
                               cudaGetErrorString(status) + "\"; a CUDA device and its driver are needed");
    }
    found.push_back({kernel.name, attributes.numRegs, static_cast<int>(attributes.localSizeBytes),
                     static_cast<int>(attributes.sharedSizeBytes), attributes.maxThreadsPerBlock,
                     attributes.binaryVersion});
  }
  return found;
}

}  // namespace dynabert::cuda
