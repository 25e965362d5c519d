#include "cpu/task_costs.h"

#include <algorithm>

namespace dynabert::cpu {
namespace {

// Tasks are blocks of rows times panels of `outputs` outputs. A span adds its rows of a block to the panels that it
// reaches, which are the leading ones: once before the first, once less behind the last, and a running sum does the
// rest.
std::vector<int64_t> product_costs(const GemmSpan* spans, int64_t num_spans, int64_t outputs, int64_t first_row,
                                   int64_t row_block, int64_t row_blocks, int64_t panels) {
  std::vector<int64_t> costs(static_cast<size_t>(row_blocks * panels + 1), 0);
  for (int64_t s = 0; s < num_spans; ++s) {
    const GemmSpan& span = spans[s];
    const int64_t reached = std::min(panels, (span.n + outputs - 1) / outputs);
    for (int64_t block = (span.begin - first_row) / row_block; block < row_blocks; ++block) {
      const int64_t begin = std::max(span.begin, first_row + block * row_block);
      const int64_t end = std::min(span.end, first_row + (block + 1) * row_block);
      if (begin >= end) break;
      costs[static_cast<size_t>(block * panels)] += (end - begin) * span.k;
      costs[static_cast<size_t>(block * panels + reached)] -= (end - begin) * span.k;
    }
  }
  for (size_t i = 1; i < costs.size(); ++i) costs[i] += costs[i - 1];
  costs.pop_back();
  return costs;
}

// What a task of attention does whatever its number of queries: it turns all keys, about as much as this many queries.
constexpr int64_t kQueriesOfTurning = 16;

}  // namespace

std::vector<int64_t> task_costs(const SpanGemm& gemm) {
  return product_costs(gemm.spans, gemm.num_spans, gemm.panel, gemm.first_row, gemm.row_block, gemm.row_blocks,
                       gemm.panels);
}

std::vector<int64_t> task_costs(const Int8Gemm& gemm) {
  return product_costs(gemm.spans, gemm.num_spans, kInt8Panel, gemm.first_row, gemm.row_block, gemm.row_blocks,
                       gemm.panels);
}

std::vector<int64_t> task_costs(const WeightGemm& gemm) {
  std::vector<int64_t> costs;
  for (int64_t first = 0; first < gemm.num_strips; first += gemm.strip_block) {
    const int64_t last = std::min(gemm.num_strips, first + gemm.strip_block);
    for (int64_t p = 0; p < gemm.num_panels; ++p) {
      int64_t cost = 0;
      for (int64_t s = 0; s < gemm.num_spans; ++s) {
        const GemmSpan& span = gemm.spans[s];
        if (span.k < gemm.panels[p].end) continue;
        // Strips lie in order, and a span reaches all of one or none: those up to its n.
        const Piece* end = std::upper_bound(gemm.strips + first, gemm.strips + last, span.n,
                                            [](int64_t n, const Piece& strip) { return n < strip.end; });
        cost += (span.end - span.begin) * (end - (gemm.strips + first));
      }
      costs.push_back(cost);
    }
  }
  return costs;
}

std::vector<int64_t> task_costs(const AttentionForward& attention) {
  std::vector<int64_t> costs;
  for (int64_t s = 0; s < attention.num_sequences; ++s) {
    const AttentionSequence& sequence = attention.sequences[s];
    const int64_t length = sequence.end - sequence.begin;
    const int64_t blocks = (length + attention.query_block - 1) / attention.query_block;
    const int64_t cost = length * (length / blocks + kQueriesOfTurning);
    costs.insert(costs.end(), static_cast<size_t>(sequence.heads * blocks), cost);
  }
  return costs;
}

std::vector<int64_t> task_costs(const AttentionBackward& attention) {
  std::vector<int64_t> costs;
  for (int64_t s = 0; s < attention.num_sequences; ++s) {
    const AttentionSequence& sequence = attention.sequences[s];
    const int64_t length = sequence.end - sequence.begin;
    costs.insert(costs.end(), static_cast<size_t>(sequence.heads), length * (length + kQueriesOfTurning));
  }
  return costs;
}

std::vector<int64_t> fair_borders(const std::vector<int64_t>& costs, int64_t parts) {
  int64_t total = 0;
  for (const int64_t cost : costs) total += cost;
  std::vector<int64_t> borders{0};
  int64_t task = 0, done = 0;
  const int64_t tasks = static_cast<int64_t>(costs.size());
  for (int64_t part = 1; part < parts; ++part) {
    const double share = static_cast<double>(total) * static_cast<double>(part) / static_cast<double>(parts);
    // A task goes where more than half of it belongs.
    while (task < tasks &&
           static_cast<double>(done) + static_cast<double>(costs[static_cast<size_t>(task)]) / 2 < share) {
      done += costs[static_cast<size_t>(task++)];
    }
    borders.push_back(task);
  }
  borders.push_back(tasks);
  return borders;
}

}  // namespace dynabert::cpu
