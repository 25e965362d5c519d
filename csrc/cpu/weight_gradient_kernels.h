// Gradients of weights over row spans. Compiled once for each instruction set: no include guard.
//
// A task is a block of strips (up to kStrip rows of dw) times one panel of its columns. Columns of dy and of x are
// brought as they lie into [rows][strip] and [rows][panel]: the rows are what is summed over, nothing is turned. Strips
// and panels end where the width of some span ends, so a span takes part in a tile whole or not at all, and nothing
// beyond a width is read. A long sum is worked off in chunks of rows, several panels at a time, so that the strips of a
// chunk stay in the second-level cache. Each element is summed in one order, given by the spans alone. 2 n k operations
// per row.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/tile.h"
#include "dynabert/simd/transpose.h"
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
#include "dynabert/simd/tile_registers.h"
#include "dynabert/simd/column_pairs.h"
#endif

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

#if DYNABERT_ISA != DYNABERT_ISA_GENERIC

constexpr int64_t kChunk = 2 * kSumBlock;    // units
constexpr int64_t kGroupFloats = 96 * 1024;  // sums of all panels of a group

// The rows of all spans that reach a piece's end, one behind the other.
template <class Units>
float* pack_piece(float* out, int64_t width, const typename Units::Element* source, int64_t stride, const Piece& piece,
                  const GemmSpan* spans, int64_t count, int64_t GemmSpan::* reach) {
  for (int64_t s = 0; s < count; ++s) {
    const GemmSpan& span = spans[s];
    if (span.*reach < piece.end) continue;
    pack_columns<Units>(out, width, source + span.begin * stride + piece.begin, stride, span.end - span.begin,
                        span.*reach - piece.begin);
    out += units_of<Units>(span.end - span.begin) * width;
  }
  return out;
}

// Columns of dy as strips, each with the rows of all spans that reach it. A few rows at a time for all strips: a line
// of dy is used to its end before it leaves the first-level cache, where rows of equal alignment compete for 8 places.
template <class Units>
void pack_strips(const WeightGemm& g, const Piece* strips, int64_t num_strips, float* out, float** starts,
                 float** nexts) {
  constexpr int64_t kRows = 8;
  for (int64_t i = 0; i < num_strips; ++i) {
    starts[i] = nexts[i] = out;
    for (int64_t s = 0; s < g.num_spans; ++s) {
      if (g.spans[s].n < strips[i].end) continue;
      out += units_of<Units>(g.spans[s].end - g.spans[s].begin) * (strips[i].end - strips[i].begin);
    }
    out += kLanes<float>;  // what is written behind the last unit
  }
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    for (int64_t row = span.begin; row < span.end; row += kRows) {
      const int64_t rows = span.end - row < kRows ? span.end - row : kRows;
      const typename Units::Element* dy = static_cast<const typename Units::Element*>(g.dy) + row * g.dy_stride;
      for (int64_t i = 0; i < num_strips && strips[i].end <= span.n; ++i) {
        const int64_t width = strips[i].end - strips[i].begin;
        pack_columns<Units>(nexts[i], width, dy + strips[i].begin, g.dy_stride, rows, span.n - strips[i].begin);
        nexts[i] += units_of<Units>(rows) * width;
      }
    }
  }
}

// Adds to the tile's sums what the spans of one chunk give; returns where the strip's next chunk begins. Spans that lie
// one behind the other in both operands are one product, up to a block.
template <class Units, class Multiply>
float* add_spans(const GemmSpan* spans, int64_t count, const Piece& strip, const Piece& panel, float* rows,
                 const float* packed, float* sums, bool& added, Ahead& ahead) {
  const int64_t width = strip.end - strip.begin;
  const float *run_rows = rows, *run_packed = packed;
  int64_t units = 0;
  const auto close = [&]() {
    if (units > 0) {
      sum_in_blocks<Multiply>(width, run_rows, run_packed, units, sums, added, ahead);
      added = true;
    }
    units = 0;
  };
  for (int64_t s = 0; s < count; ++s) {
    const GemmSpan& span = spans[s];
    const int64_t here = units_of<Units>(span.end - span.begin);
    const bool in_strip = span.n >= strip.end, in_panel = span.k >= panel.end;
    if (in_strip != in_panel || units + here > kSumBlock) close();
    if (in_strip && in_panel) {
      if (units == 0) {
        run_rows = rows;
        run_packed = packed;
      }
      units += here;
    }
    if (in_strip) rows += here * width;
    if (in_panel) packed += here * kPanel;
  }
  close();
  return rows;
}

template <class T>
void store_tile(const WeightGemm& g, const Piece& strip, const Piece& panel, const float* sums, bool added) {
  constexpr int kLane = kLanes<float>;
  const int64_t columns = panel.end - panel.begin;
  for (int64_t row = strip.begin; row < strip.end; ++row, sums += kPanel) {
    T* out = static_cast<T*>(g.dw) + row * g.dw_stride + panel.begin;
    for (int64_t j = 0; j < columns; j += kLane) {
      const Float v = added ? load(sums + j) : Float{};
      if (columns - j >= kLane) {
        store(out + j, v);
      } else {
        store_part(out + j, v, static_cast<int>(columns - j));
      }
    }
  }
}

template <class T, class Units, class Multiply>
void run_block(const WeightGemm& g, const Piece* strips, int64_t num_strips, int64_t first_panel, int64_t last_panel) {
  using Element = typename Units::Element;
  const Element* x = static_cast<const Element*>(g.x);
  int64_t units = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) units += units_of<Units>(g.spans[s].end - g.spans[s].begin);
  const int64_t rows = strips[num_strips - 1].end - strips[0].begin;
  const int64_t fitting = units > kChunk ? kGroupFloats / (num_strips * kStrip * kPanel) : 1;
  const int64_t group = fitting > 1 ? fitting : 1;

  float* packed_strips = scratch_of<float>(kScratchA, static_cast<size_t>(units * rows + num_strips * kLanes<float>));
  float* panel_rows = scratch_of<float>(kScratchB, static_cast<size_t>((kChunk + 1) * kPanel));
  float* sums = scratch_of<float>(kScratchD, static_cast<size_t>(group * num_strips * kStrip * kPanel));
  // Where each strip begins, where its current chunk begins, and which tiles of the group hold something.
  float** starts = scratch_of<float*>(kScratchC, static_cast<size_t>(num_strips * 2));
  float** nexts = starts + num_strips;
  bool* added = scratch_of<bool>(kScratchE, static_cast<size_t>(num_strips * group));
  pack_strips<Units>(g, strips, num_strips, packed_strips, starts, nexts);
  for (int64_t from = first_panel; from < last_panel; from += group) {
    const int64_t to = last_panel - from < group ? last_panel : from + group;
    for (int64_t i = 0; i < num_strips; ++i) nexts[i] = starts[i];
    for (int64_t i = 0; i < num_strips * group; ++i) added[i] = false;
    for (int64_t span = 0; span < g.num_spans;) {
      int64_t last = span;
      for (int64_t u = 0; last < g.num_spans; ++last) {
        u += units_of<Units>(g.spans[last].end - g.spans[last].begin);
        if (u > kChunk) break;
      }
      for (int64_t p = from; p < to; ++p) {
        pack_piece<Units>(panel_rows, kPanel, x, g.x_stride, g.panels[p], g.spans + span, last - span, &GemmSpan::k);
        Ahead ahead = {};
        if (p + 1 < to) {
          const GemmSpan &first = g.spans[span], &end = g.spans[last - 1];
          ahead = Ahead::of(x + first.begin * g.x_stride + g.panels[p + 1].begin, g.x_stride, end.end - first.begin,
                            g.panels[p + 1].end - g.panels[p + 1].begin);
        }
        for (int64_t i = 0; i < num_strips; ++i) {
          const int64_t tile = (p - from) * num_strips + i;
          float* tile_sums = sums + tile * kStrip * kPanel;
          if (last == g.num_spans) {
            ask_to_write(static_cast<T*>(g.dw) + strips[i].begin * g.dw_stride + g.panels[p].begin, g.dw_stride,
                         strips[i].end - strips[i].begin, g.panels[p].end - g.panels[p].begin);
          }
          float* next = add_spans<Units, Multiply>(g.spans + span, last - span, strips[i], g.panels[p], nexts[i],
                                                   panel_rows, tile_sums, added[tile], ahead);
          if (last == g.num_spans) store_tile<T>(g, strips[i], g.panels[p], tile_sums, added[tile]);
          if (p + 1 == to) nexts[i] = next;
        }
      }
      span = last;
    }
  }
}

template <class T, class Units, class Multiply>
void run_tasks(const WeightGemm& g, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end;) {
    const int64_t strip = task / g.num_panels * g.strip_block, panel = task % g.num_panels;
    const int64_t strips = g.num_strips - strip < g.strip_block ? g.num_strips - strip : g.strip_block;
    const int64_t panels = end - task < g.num_panels - panel ? end - task : g.num_panels - panel;
    run_block<T, Units, Multiply>(g, g.strips + strip, strips, panel, panel + panels);
    task += panels;
  }
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
#include "cpu/weight_gradient_tiles.h"
namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {
#endif

void gemm(const WeightGemm& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32:
      return run_tasks<float, FloatUnits<float>, MultiplyNumbers<float>>(g, begin, end);
    case DType::kFloat16:
      return run_tasks<Half, FloatUnits<Half>, MultiplyNumbers<float>>(g, begin, end);
    case DType::kBFloat16:
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
      if (with_tiles([&](auto kind) { run_tile_tasks<typename decltype(kind)::Tiles>(g, begin, end); })) return;
      if (use_bfloat16_dot()) return run_tasks<NativeBFloat16, BFloat16Pairs, MultiplyBFloat16Pairs>(g, begin, end);
#endif
      return run_tasks<BFloat16, FloatUnits<BFloat16>, MultiplyNumbers<float>>(g, begin, end);
    default:
      return;
  }
}

#else
void gemm(const WeightGemm&, int64_t, int64_t) {}
#endif

// One register of columns at a time, in blocks of rows that are added at the end: see sum_in_blocks.
template <class T>
void sum_columns(const ColumnSums& g, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>, kBlock = 64;
  for (int64_t j = begin; j < end; j += kStep) {
    const int here = end - j < kStep ? static_cast<int>(end - j) : static_cast<int>(kStep);
    Vector<S> total = {};
    for (int64_t s = 0; s < g.num_spans; ++s) {
      const GemmSpan& span = g.spans[s];
      if (span.n <= j) continue;
      const int reached = span.n - j < here ? static_cast<int>(span.n - j) : here;
      for (int64_t block = span.begin; block < span.end; block += kBlock) {
        const int64_t last = span.end - block < kBlock ? span.end : block + kBlock;
        Vector<S> part = {};
        const T* a = static_cast<const T*>(g.a) + block * g.a_stride + j;
        if (reached == kStep) {
          for (int64_t row = block; row < last; ++row, a += g.a_stride) part += load(a);
        } else {
          for (int64_t row = block; row < last; ++row, a += g.a_stride) part += load_part(a, reached);
        }
        total += part;
      }
    }
    store_part(static_cast<T*>(g.out) + j, total, here);
  }
}

void column_sums(const ColumnSums& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32:
      return sum_columns<float>(g, begin, end);
    case DType::kBFloat16:
      return sum_columns<BFloat16>(g, begin, end);
    case DType::kFloat16:
      return sum_columns<Half>(g, begin, end);
    case DType::kFloat64:
      return sum_columns<double>(g, begin, end);
  }
}

}  // namespace

constexpr WeightKernels kWeight = {gemm, column_sums, kStrip, kPanel, kSumBlock};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
