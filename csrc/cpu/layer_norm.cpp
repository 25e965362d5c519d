#include "cpu/layer_norm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct LayerNormKernels {
  decltype(&layer_norm_forward) forward;
  decltype(&layer_norm_backward) backward;
  decltype(&layer_norm_sum_partials) sum_partials;
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/layer_norm_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<LayerNormKernels> kernels = DYNABERT_PER_ISA(kLayerNorm);

}  // namespace

void layer_norm_forward(const LayerNormForward& arguments, int64_t begin, int64_t end) {
  kernels.chosen().forward(arguments, begin, end);
}

void layer_norm_backward(const LayerNormBackward& arguments, int64_t begin, int64_t end) {
  kernels.chosen().backward(arguments, begin, end);
}

void layer_norm_sum_partials(DType dtype, const void* partials, int64_t chunks, int64_t sums, int64_t columns,
                             void* const* out) {
  kernels.chosen().sum_partials(dtype, partials, chunks, sums, columns, out);
}

}  // namespace dynabert::cpu
