// The CUDA stream PyTorch is using, without linking libtorch_cuda.
//
// The stable ABI of torch 2.11 and 2.12 offers the stream only through `aoti_torch_get_current_cuda_stream`, which
// lives in libtorch_cuda. Naming that symbol would make `import dynabert_kernels._C` fail under a CPU build of torch,
// and a weak symbol would stay null even on a GPU machine, because torch loads its libraries locally. So the library
// that is already in the process is asked by name; it is never loaded from here.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace dynabert {

// The stream that PyTorch's current stream of `device` stands for. Does not synchronise.
inline cudaStream_t current_stream(int32_t device) {
  using Lookup = int32_t (*)(int32_t device, void** stream);
  static const Lookup lookup = [] {
    for (const char* name : {"libtorch_cuda.so", "libtorch_cuda_linalg.so"}) {
      if (void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY)) {
        if (void* symbol = dlsym(library, "aoti_torch_get_current_cuda_stream")) {
          return reinterpret_cast<Lookup>(symbol);
        }
      }
    }
    return static_cast<Lookup>(nullptr);
  }();
  if (lookup == nullptr) {
    throw std::runtime_error(
        "dynabert_cuda: no CUDA stream; this PyTorch has no CUDA support (libtorch_cuda is not loaded); "
        "install a CUDA build of PyTorch 2.11 or later");
  }
  void* stream = nullptr;
  if (lookup(device, &stream) != 0) {
    throw std::runtime_error("dynabert_cuda: PyTorch gave no stream for device " + std::to_string(device));
  }
  return static_cast<cudaStream_t>(stream);
}

// Throws when the launch before it failed. Says nothing about errors that arise while a kernel runs.
inline void check_launch(const char* kernel) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": launch failed: " + cudaGetErrorString(status));
  }
}

}  // namespace dynabert
