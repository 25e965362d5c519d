// Products of bfloat16 over row spans through tile registers. A part of gemm_kernels.h, for AVX-512 only.
//
// A task is a block of rows times one panel of 32 outputs, as without tiles. A tile product wants one side as it lies
// in memory and the other one in units along the sum; its sums run over the whole k in registers. So what has to be
// brought into another order is chosen by what lies ready:
//   * weights as they lie: they are the left side, straight from where they are; the rows are the right side, brought
//     into units once for each block. The sums come out turned and are turned back.
//   * packed weights: they are the right side, straight from where they are, and so are the rows.
//   * the gradient of the inputs: a panel of weights becomes units, two rows of it at a time; the rows lie ready.
// A side whose rows are no multiple of 16, or whose numbers are none of 32, is copied with zeros behind it: nothing past
// a width is read, and 0 times an infinite weight would be NaN. Each output is summed over k in one order.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// Up to 32 rows of one span, as one side of a tile product.
struct TileStrip {
  int64_t row, rows, n, k;
  const void* side;  // bfloat16 rows, `stride` bytes apart; or units of 32 rows
  int64_t stride;
};

enum class WeightOrder { kRows, kPacked, kGradient };

DYNABERT_INLINE int64_t padded(int64_t k) { return round_up(k, kTileNumbers); }

template <WeightOrder kOrder>
int64_t cut_tile_strips(const SpanGemm& g, int64_t first, int64_t last, const TileStrip** strips_out) {
  constexpr bool kUnits = kOrder == WeightOrder::kRows;
  const auto lies_ready = [](int64_t rows, int64_t k) {
    return !kUnits && rows % kTileSide == 0 && k % kTileNumbers == 0;
  };
  int64_t count = 0, floats = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    for (int64_t row = begin; row < end; row += kTileSpan) {
      const int64_t rows = end - row < kTileSpan ? end - row : kTileSpan;
      if (!lies_ready(rows, span.k)) floats += kTileSpan * padded(span.k) / 2;
      ++count;
    }
  }
  TileStrip* strips = scratch_of<TileStrip>(kScratchC, static_cast<size_t>(count));
  float* copied = scratch_of<float>(kScratchA, static_cast<size_t>(floats + kLanes<float>));
  int64_t at = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    for (int64_t row = begin; row < end; row += kTileSpan) {
      const int64_t rows = end - row < kTileSpan ? end - row : kTileSpan, stored = padded(span.k);
      const BFloat16* source = static_cast<const BFloat16*>(g.a) + row * g.a_stride;
      if (lies_ready(rows, span.k)) {
        strips[at++] = {row, rows, span.n, span.k, source, g.a_stride * 2};
        continue;
      }
      strips[at++] = {row, rows, span.n, span.k, copied, stored * 2};
      if constexpr (kUnits) {
        const int64_t units = units_of<BFloat16Pairs>(span.k);
        pack_rows<BFloat16Pairs>(copied, kTileSpan, source, g.a_stride, rows, span.k);
        __builtin_memset(copied + units * kTileSpan, 0, static_cast<size_t>(stored / 2 - units) * kTileSpan * 4);
      } else {
        pad_rows(reinterpret_cast<BFloat16*>(copied), kTileSpan, stored, source, g.a_stride, rows, span.k);
      }
      copied += kTileSpan * stored / 2;
    }
  }
  *strips_out = strips;
  return count;
}

// A panel of weights as the other side, made anew only where the one at hand cannot serve a strip.
template <WeightOrder kOrder>
struct TileWeights {
  const SpanGemm& g;
  int64_t column = 0, columns = 0, k = 0;  // what `side` holds; columns 0: nothing
  const void* side = nullptr;
  int64_t stride = 0;  // bytes

  // widest, longest: the most that any strip needs of this panel.
  void bring(int64_t panel_column, int64_t width, int64_t length, int64_t widest, int64_t longest) {
    const BFloat16* b = static_cast<const BFloat16*>(g.b);
    const bool same = panel_column == column && columns > 0;
    const bool serves = length == k || (length < k && length % kTileNumbers == 0);
    if constexpr (kOrder == WeightOrder::kPacked) {
      if (same && serves) return;
      const float* packed = static_cast<const float*>(g.b) +
                            panel_column / kPanel * units_of<BFloat16Pairs>(g.packed_inputs) * kPanel;
      hold(panel_column, kPanel, length, packed, 0);
      if (length % kTileNumbers != 0) side = cut_off(packed, length);
    } else if constexpr (kOrder == WeightOrder::kGradient) {
      if (same && serves && width <= columns) return;
      const bool all = longest % kTileNumbers == 0 && length % kTileNumbers == 0;
      const int64_t rows = all ? longest : length, units = units_of<BFloat16Pairs>(rows), stored = padded(rows) / 2;
      float* turned = scratch_of<float>(kScratchB, static_cast<size_t>((stored + 1) * kPanel));
      pack_columns<BFloat16Pairs>(turned, kPanel, b + panel_column, g.b_stride, rows, widest);
      __builtin_memset(turned + units * kPanel, 0, static_cast<size_t>(stored - units) * kPanel * 4);
      hold(panel_column, widest, rows, turned, 0);
    } else {
      if (same && serves && width == columns) return;
      const BFloat16* rows = b + panel_column * g.b_stride;
      hold(panel_column, width, length, rows, g.b_stride * 2);
      if (width % kTileSide == 0 && length % kTileNumbers == 0) return;
      const int64_t stored = padded(length);
      float* copy = scratch_of<float>(kScratchB, static_cast<size_t>(kTileSpan * stored / 2));
      pad_rows(reinterpret_cast<BFloat16*>(copy), kTileSpan, stored, rows, g.b_stride, width, length);
      side = copy;
      stride = stored * 2;
    }
  }

 private:
  void hold(int64_t panel_column, int64_t width, int64_t length, const void* data, int64_t data_stride) {
    column = panel_column;
    columns = width;
    k = length;
    side = data;
    stride = data_stride;
  }

  // The leading `length` numbers along k of a packed panel, with zeros behind them.
  static const float* cut_off(const float* packed, int64_t length) {
    const int64_t units = units_of<BFloat16Pairs>(length), stored = padded(length) / 2;
    float* copy = scratch_of<float>(kScratchB, static_cast<size_t>(stored * kPanel));
    __builtin_memcpy(copy, packed, static_cast<size_t>(units) * kPanel * 4);
    __builtin_memset(copy + units * kPanel, 0, static_cast<size_t>(stored - units) * kPanel * 4);
    if (length % 2 != 0) {
      for (int64_t j = 0; j < kPanel; j += kLanes<float>) {
        float* last = copy + (units - 1) * kPanel + j;
        store(last, bit_cast<Float>(bit_cast<Int>(load(last)) & 0xffff));
      }
    }
    return copy;
  }
};

// sums[row * kPanel + output] = turned[output * kTileSpan + row]
DYNABERT_INLINE void turn_sums(const float* turned, int64_t rows, int64_t outputs, float* sums) {
  for (int64_t row = 0; row < rows; row += kTileSide) {
    for (int64_t output = 0; output < outputs; output += kTileSide) {
      Float square[kTileSide];
#pragma GCC unroll 16
      for (int i = 0; i < kTileSide; ++i) square[i] = load(turned + (output + i) * kTileSpan + row);
      transpose_square(square);
#pragma GCC unroll 16
      for (int i = 0; i < kTileSide; ++i) store(sums + (row + i) * kPanel + output, square[i]);
    }
  }
}

template <class Tiles, WeightOrder kOrder>
void run_tile_panels(const SpanGemm& g, const TileStrip* strips, int64_t count, int64_t begin, int64_t end) {
  constexpr bool kGradient = kOrder == WeightOrder::kGradient;
  float* const sums = scratch_of<float>(kScratchD, static_cast<size_t>(2 * kTileSpan * kPanel));
  float* const turned = sums + kTileSpan * kPanel;
  Tiles tiles;
  TileWeights<kOrder> weights{g};
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * kPanel;
    int64_t reach = 0, longest = 0, steps = 0;
    for (int64_t s = 0; s < count; ++s) {
      if (strips[s].n <= column) continue;
      reach = strips[s].n > reach ? strips[s].n : reach;
      longest = strips[s].k > longest ? strips[s].k : longest;
      steps += padded(strips[s].k) / kTileNumbers;
    }
    if (steps == 0) continue;
    const int64_t widest = reach - column < kPanel ? reach - column : kPanel;
    // The weights of the next panel: their lines are asked for step by step.
    Ahead ahead = {};
    int64_t lines = 0;
    if (panel + 1 < end && reach > column + kPanel) {
      const int64_t next = reach - column - kPanel < kPanel ? reach - column - kPanel : kPanel;
      const BFloat16* b = static_cast<const BFloat16*>(g.b);
      if constexpr (kOrder == WeightOrder::kPacked) {
        const float* packed = static_cast<const float*>(g.b);
        const int64_t units = units_of<BFloat16Pairs>(g.packed_inputs);
        ahead = Ahead::of(packed + (panel + 1) * units * kPanel, 0, 1, units_of<BFloat16Pairs>(longest) * kPanel);
      } else if constexpr (kGradient) {
        ahead = Ahead::of(b + column + kPanel, g.b_stride, longest, next);
      } else {
        ahead = Ahead::of(b + (column + kPanel) * g.b_stride, g.b_stride, next, longest);
      }
      lines = (ahead.rows * ahead.lines + steps - 1) / steps;
    }
    for (int64_t s = 0; s < count; ++s) {
      const TileStrip& strip = strips[s];
      if (strip.n <= column) continue;
      const int64_t width = strip.n - column < kPanel ? strip.n - column : kPanel;
      weights.bring(column, width, strip.k, widest, longest);
      ask_for_tile<NativeBFloat16, kGradient>(g, strip.row, strip.rows, column, width);
      const int64_t here = padded(strip.k) / kTileNumbers;
      if constexpr (kOrder == WeightOrder::kRows) {
        multiply_tiles(tiles, width, strip.rows, weights.side, weights.stride, static_cast<const float*>(strip.side),
                       kTileSpan, here, turned, kTileSpan, false, ahead, lines);
        turn_sums(turned, strip.rows, width, sums);
      } else {
        multiply_tiles(tiles, strip.rows, width, strip.side, strip.stride, static_cast<const float*>(weights.side),
                       kPanel, here, sums, kPanel, false, ahead, lines);
      }
      finish_strip<NativeBFloat16, kGradient>(g, strip.row, strip.rows, column, width, sums);
    }
  }
}

template <class Tiles, WeightOrder kOrder>
void run_tile_tasks(const SpanGemm& g, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end;) {
    const int64_t block = task / g.panels, panel = task % g.panels;
    const int64_t panels = end - task < g.panels - panel ? end - task : g.panels - panel;
    const int64_t first = g.first_row + block * g.row_block;
    const TileStrip* strips = nullptr;
    const int64_t count = cut_tile_strips<kOrder>(g, first, first + g.row_block, &strips);
    run_tile_panels<Tiles, kOrder>(g, strips, count, panel, panel + panels);
    task += panels;
  }
}

template <class Tiles>
void run_tile_gemm(const SpanGemm& g, int64_t begin, int64_t end) {
  if (g.gradient) return run_tile_tasks<Tiles, WeightOrder::kGradient>(g, begin, end);
  if (g.packed_inputs > 0) return run_tile_tasks<Tiles, WeightOrder::kPacked>(g, begin, end);
  run_tile_tasks<Tiles, WeightOrder::kRows>(g, begin, end);
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
