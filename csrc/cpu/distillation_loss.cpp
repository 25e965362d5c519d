#include "cpu/distillation_loss.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct DistillationLossKernels {
  decltype(&distillation_loss_forward) forward;
  decltype(&distillation_loss_backward) backward;
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/distillation_loss_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<DistillationLossKernels> kernels = DYNABERT_PER_ISA(kDistillationLoss);

}  // namespace

void distillation_loss_forward(const DistillationLoss& arguments, double* losses, int64_t begin, int64_t end) {
  kernels.chosen().forward(arguments, losses, begin, end);
}

void distillation_loss_backward(const DistillationLoss& arguments, const double* scales, void* dstudent, int64_t begin,
                                int64_t end) {
  kernels.chosen().backward(arguments, scales, dstudent, begin, end);
}

}  // namespace dynabert::cpu
