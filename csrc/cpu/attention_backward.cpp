#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/attention.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct AttentionBackwardKernels {
  decltype(&run_attention_backward) backward;
  decltype(&sum_position_bias) position_bias;
};

// Numbers from one head's sums to the next: 2 n - 1 distances, and room to add whole registers at the last one.
constexpr int64_t sums_of(int64_t length) { return 2 * length + 16; }

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/attention_backward_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<AttentionBackwardKernels> kernels = DYNABERT_PER_ISA(kAttentionBackward);

}  // namespace

BackwardPlan plan_attention_backward(AttentionBackward& attention) {
  BackwardPlan plan = {0, 0};
  for (int64_t s = 0; s < attention.num_sequences; ++s) {
    AttentionSequence& sequence = attention.sequences[s];
    sequence.first_task = plan.tasks;
    sequence.first_sum = plan.sums;
    plan.tasks += sequence.heads;
    plan.sums += sequence.heads * sums_of(sequence.end - sequence.begin);
  }
  return plan;
}

void run_attention_backward(const AttentionBackward& attention, int64_t begin, int64_t end) {
  kernels.chosen().backward(attention, begin, end);
}

void sum_position_bias(const AttentionBackward& attention, void* dbias, int64_t distances, int64_t begin, int64_t end) {
  kernels.chosen().position_bias(attention, dbias, distances, begin, end);
}

}  // namespace dynabert::cpu
