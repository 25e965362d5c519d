#include "cpu/int8_gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct Int8Kernels {
  void (*gemm)(const Int8Gemm&, int64_t begin, int64_t end);
  void (*rows)(const Int8Rows&, int64_t begin, int64_t end);
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/int8_gemm_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<Int8Kernels> kernels = DYNABERT_PER_ISA(kInt8);

constexpr int64_t kFewRows = 8;  // of a span: tiles, of 16 rows, are no faster there

}  // namespace

int64_t plan_int8_gemm(Int8Gemm& gemm, int64_t threads) {
  int64_t n = 0, k = 1, first = gemm.spans[0].begin, last = first;
  for (int64_t s = 0; s < gemm.num_spans; ++s) {
    n = std::max(n, gemm.spans[s].n);
    k = std::max(k, gemm.spans[s].k);
    first = std::min(first, gemm.spans[s].begin);
    last = std::max(last, gemm.spans[s].end);
  }
  gemm.panels = (n + kInt8Panel - 1) / kInt8Panel;
  gemm.first_row = first;
  const int64_t rows = last - first;
  const bool tiles = use_tiles() && units_of_a_tile(gemm.cut.units) > 0 && rows > kFewRows * gemm.num_spans;
  gemm.tiles = tiles;
  // A block's copied rows should stay in the second-level cache, which is larger where there are tiles.
  const int64_t cached = std::max<int64_t>(168, (tiles ? 1024 : 512) * 1024 / gemm.cut.bytes(k));
  const int64_t shared = std::max<int64_t>(42, rows * gemm.panels / (tasks_per_thread(gemm.num_spans) * threads));
  int64_t blocks = std::max<int64_t>(1, (rows + std::min(cached, shared) - 1) / std::min(cached, shared));
  if (gemm.num_spans == 1) blocks = even_blocks(rows, blocks, gemm.panels, threads);
  gemm.row_block = (rows + blocks - 1) / blocks;
  if (tiles) {
    gemm.row_block = whole_tiles(gemm.row_block);
    blocks = (rows + gemm.row_block - 1) / gemm.row_block;
  }
  gemm.row_blocks = blocks;
  return blocks * gemm.panels;
}

void run_int8_gemm(const Int8Gemm& gemm, int64_t begin, int64_t end) { kernels.chosen().gemm(gemm, begin, end); }

void run_int8_rows(const Int8Rows& rows, int64_t begin, int64_t end) { kernels.chosen().rows(rows, begin, end); }

}  // namespace dynabert::cpu
