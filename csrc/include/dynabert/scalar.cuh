// Element types of device code, and packs of them that one instruction loads or stores.
//
// Conversions are the named intrinsics, not casts: torch's build flags switch the implicit ones off.
#pragma once

#ifndef DYNABERT_HOST_SHIM
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>

namespace dynabert {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

// The widest access the hardware has is 16 bytes.
template <class T>
inline constexpr int kWidestVector = 16 / static_cast<int>(sizeof(T));

// kVector elements that lie side by side at an address divisible by their size.
template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T value[kVector];
};

}  // namespace dynabert
