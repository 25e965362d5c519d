#include "cpu/gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct GemmKernels {
  void (*gemm)(const SpanGemm&, int64_t begin, int64_t end);
  void (*epilogue)(const RowEpilogue&, int64_t begin, int64_t end);
  void (*gradient)(const RowGradient&, int64_t begin, int64_t end);
  int64_t panel;
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/gemm_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<GemmKernels> kernels = DYNABERT_PER_ISA(kGemm);

constexpr int64_t kTilePanel = 16;  // outputs of a panel of weights that are packed for tile registers

}  // namespace

bool has_gemm(DType dtype) {
  if (active_isa() == Isa::kGeneric || dtype == DType::kFloat64) return false;
  return true;
}

int64_t packed_panel(DType dtype) {
  if (!has_gemm(dtype) || dtype == DType::kFloat16) return 0;  // float16 would be packed as floats, twice as large
  if (dtype == DType::kBFloat16 && !use_bfloat16_dot()) return 0;
  if (dtype == DType::kBFloat16 && use_tiles()) return kTilePanel;
  return kernels.chosen().panel;
}

int64_t plan_gemm(SpanGemm& gemm, int64_t threads) {
  int64_t n = 0, k = 1, first = gemm.spans[0].begin, last = first;
  for (int64_t s = 0; s < gemm.num_spans; ++s) {
    n = std::max(n, gemm.spans[s].n);
    k = std::max(k, gemm.spans[s].k);
    first = std::min(first, gemm.spans[s].begin);
    last = std::max(last, gemm.spans[s].end);
  }
  gemm.panel = kernels.chosen().panel;
  gemm.panels = (n + gemm.panel - 1) / gemm.panel;
  gemm.first_row = first;
  const int64_t rows = last - first;
  const bool tiles = gemm.dtype == DType::kBFloat16 && use_tiles();
  // What a block's packed rows hold of one chunk of k should stay in the second-level cache. But each block packs its
  // panels anew, so not below 168 rows unless there are more threads than panels. With tiles all of k is one chunk.
  const int64_t chunk_bytes = (gemm.dtype == DType::kBFloat16 ? 2 : 4) * std::min<int64_t>(k, 512);
  const int64_t cached = tiles ? std::max<int64_t>(3 * kTileRows, 1024 * 1024 / (2 * k))
                               : std::max<int64_t>(168, 512 * 1024 / chunk_bytes);
  const int64_t shared = std::max<int64_t>(42, rows * gemm.panels / (tasks_per_thread(gemm.num_spans) * threads));
  int64_t blocks = std::max<int64_t>(1, (rows + std::min(cached, shared) - 1) / std::min(cached, shared));
  if (gemm.packed_inputs > 0 && gemm.num_spans == 1) blocks = even_blocks(rows, blocks, gemm.panels, threads);
  gemm.row_block = (rows + blocks - 1) / blocks;
  if (tiles) {
    gemm.row_block = whole_tiles(gemm.row_block);
    blocks = (rows + gemm.row_block - 1) / gemm.row_block;
  }
  gemm.row_blocks = blocks;
  return blocks * gemm.panels;
}

void run_gemm(const SpanGemm& gemm, int64_t begin, int64_t end) { kernels.chosen().gemm(gemm, begin, end); }

void run_epilogue(const RowEpilogue& epilogue, int64_t begin, int64_t end) {
  kernels.chosen().epilogue(epilogue, begin, end);
}

void run_gradient(const RowGradient& gradient, int64_t begin, int64_t end) {
  kernels.chosen().gradient(gradient, begin, end);
}

}  // namespace dynabert::cpu
