#include "cpu/embedding.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct EmbeddingKernels {
  decltype(&embedding_forward) forward;
  decltype(&embedding_backward) backward;
  decltype(&embedding_sum) sum;
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/embedding_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<EmbeddingKernels> kernels = DYNABERT_PER_ISA(kEmbedding);

}  // namespace

int64_t embedding_forward(const EmbeddingForward& arguments, int64_t begin, int64_t end) {
  return kernels.chosen().forward(arguments, begin, end);
}

int64_t embedding_backward(const EmbeddingBackward& arguments, int64_t begin, int64_t end) {
  return kernels.chosen().backward(arguments, begin, end);
}

void embedding_sum(const EmbeddingSum& arguments, int64_t begin, int64_t end) {
  kernels.chosen().sum(arguments, begin, end);
}

}  // namespace dynabert::cpu
