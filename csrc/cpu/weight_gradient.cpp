#include "cpu/weight_gradient.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace dynabert::cpu {

struct WeightKernels {
  void (*gemm)(const WeightGemm&, int64_t begin, int64_t end);
  void (*column_sums)(const ColumnSums&, int64_t begin, int64_t end);
  int64_t strip, panel, span_rows;
};

}  // namespace dynabert::cpu

#define DYNABERT_KERNELS "cpu/weight_gradient_kernels.h"
#include "dynabert/simd/foreach_isa.h"

namespace dynabert::cpu {
namespace {

constexpr PerIsa<WeightKernels> kernels = DYNABERT_PER_ISA(kWeight);

// Pieces of at most `most` columns, nearly equal between two borders.
std::vector<Piece> cut(const std::vector<int64_t>& borders, int64_t most, bool equal) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i + 1 < borders.size(); ++i) {
    const int64_t begin = borders[i], length = borders[i + 1] - begin, count = (length + most - 1) / most;
    for (int64_t piece = 0; piece < count; ++piece) {
      if (equal) {
        pieces.push_back({begin + length * piece / count, begin + length * (piece + 1) / count});
      } else {
        pieces.push_back({begin + most * piece, begin + std::min(length, most * (piece + 1))});
      }
    }
  }
  return pieces;
}

}  // namespace

std::vector<int64_t> borders_of(const std::vector<GemmSpan>& spans, int64_t GemmSpan::* width) {
  std::vector<int64_t> borders{0};
  for (const GemmSpan& span : spans) borders.push_back(span.*width);
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  return borders;
}

int64_t plan_weight_gemm(WeightGemm& gemm, WeightPlan& plan, const std::vector<GemmSpan>& spans, int64_t threads) {
  const WeightKernels& chosen = kernels.chosen();
  const bool tiles = gemm.dtype == DType::kBFloat16 && use_tiles();
  const int64_t strip_columns = tiles ? kTileRows : chosen.strip;
  int64_t rows = 0;
  for (const GemmSpan& span : spans) {
    if (span.n == 0 || span.k == 0) continue;
    rows += span.end - span.begin;
    for (int64_t begin = span.begin; begin < span.end; begin += chosen.span_rows) {
      plan.spans.push_back({begin, std::min(span.end, begin + chosen.span_rows), span.n, span.k});
    }
  }
  const std::vector<int64_t> n_borders = borders_of(plan.spans, &GemmSpan::n);
  const std::vector<int64_t> k_borders = borders_of(plan.spans, &GemmSpan::k);
  plan.reached_rows = n_borders.back();
  plan.reached_columns = k_borders.back();
  plan.strips = cut(n_borders, strip_columns, !tiles);
  plan.panels = cut(k_borders, chosen.panel, false);
  gemm.spans = plan.spans.data();
  gemm.num_spans = static_cast<int64_t>(plan.spans.size());
  gemm.strips = plan.strips.data();
  gemm.num_strips = static_cast<int64_t>(plan.strips.size());
  gemm.panels = plan.panels.data();
  gemm.num_panels = static_cast<int64_t>(plan.panels.size());
  if (gemm.num_strips == 0 || gemm.num_panels == 0) return 0;
  // The packed strips of a block should stay in the second-level cache, as much of them as one chunk of rows uses, and
  // what a thread packs in all should stay small. But not so many that the threads have nothing to share.
  const int64_t strip_bytes = strip_columns * (tiles ? 2 : 4);
  const int64_t cached =
      512 * 1024 / (strip_bytes * std::min<int64_t>(std::max<int64_t>(rows, 1), 2 * chosen.span_rows));
  const int64_t stored = 8 * 1024 * 1024 / (strip_bytes * std::max<int64_t>(rows, 1));
  const int64_t shared = gemm.num_strips * gemm.num_panels / (2 * threads);
  const int64_t most = std::max<int64_t>(4, std::min(std::min(cached, stored), shared));
  const int64_t blocks = (gemm.num_strips + most - 1) / most;
  gemm.strip_block = (gemm.num_strips + blocks - 1) / blocks;
  return (gemm.num_strips + gemm.strip_block - 1) / gemm.strip_block * gemm.num_panels;
}

void run_weight_gemm(const WeightGemm& gemm, int64_t begin, int64_t end) { kernels.chosen().gemm(gemm, begin, end); }

void run_column_sums(const ColumnSums& sums, int64_t begin, int64_t end) {
  kernels.chosen().column_sums(sums, begin, end);
}

}  // namespace dynabert::cpu
