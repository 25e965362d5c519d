#include "cpu/attention.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct AttentionKernels {
  decltype(&run_attention) attention;
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/attention_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<AttentionKernels> kernels = DYNABERT_PER_ISA(kAttention);

// A task turns all keys of its head anew: blocks below this are only made where there are more threads than tasks.
struct QueryBlocks {
  int64_t smallest, largest;
};
constexpr QueryBlocks kQueryBlocks = {28, 128};
// In whole strips of tiles. Turning keys is a larger part of the work where products are faster.
constexpr QueryBlocks kTileQueryBlocks = {32, 512};

}  // namespace

int64_t plan_attention(AttentionForward& attention, int64_t threads) {
  const QueryBlocks blocks = attention.dtype == DType::kBFloat16 && use_tiles() ? kTileQueryBlocks : kQueryBlocks;
  int64_t block = blocks.largest, tasks = 0;
  for (;; block = std::max(blocks.smallest, block / 2)) {
    tasks = 0;
    for (int64_t s = 0; s < attention.num_sequences; ++s) {
      AttentionSequence& sequence = attention.sequences[s];
      sequence.first_task = tasks;
      tasks += sequence.heads * ((sequence.end - sequence.begin + block - 1) / block);
    }
    if (tasks >= 4 * threads || block == blocks.smallest || threads == 1) break;
  }
  attention.query_block = block;
  return tasks;
}

void run_attention(const AttentionForward& attention, int64_t begin, int64_t end) {
  kernels.chosen().attention(attention, begin, end);
}

}  // namespace dynabert::cpu
