// Products of bfloat16 over row spans through tile registers. A part of gemm_kernels.h, for AVX-512 only.
//
// A task is a block of rows times one panel of 32 outputs, as without tiles. A tile product wants one side as it lies
// in memory and the other one in units along the sum; its sums run over the whole k in registers. So what has to be
// brought into another order is chosen by what lies ready:
//   * weights as they lie, few rows: they are the left side, straight from where they are; the rows are the right side,
//     brought into units once for each block. The sums come out turned and are turned back.
//   * weights as they lie, many rows: a panel of weights is turned into units once for each block; the rows lie ready.
//   * packed weights: they are the right side, straight from where they are, and so are the rows.
//   * the gradient of the inputs: a panel of weights becomes units, two rows of it at a time; the rows lie ready.
// A side whose rows are no multiple of 16, or whose numbers are none of 32, is copied with zeros behind it: nothing
// past a width is read, and 0 times an infinite weight would be NaN. Each output is summed over k in one order.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// Up to 32 rows of one span, as one side of a tile product.
struct TileStrip {
  int64_t row, rows, n, k;
  TileSide side;
};

enum class WeightOrder { kRows, kTurned, kPacked, kGradient };

DYNABERT_INLINE int64_t padded(int64_t k) { return round_up(k, kTileNumbers); }
DYNABERT_INLINE int64_t padded_units(int64_t k) { return padded(k) / 2; }

// Zeros behind the units of k numbers, in each of two panels.
DYNABERT_INLINE void pad_units(float* panels, int64_t k) {
  const int64_t units = units_of<BFloat16Pairs>(k), stored = padded_units(k);
  for (int64_t half = 0; half < 2; ++half) {
    __builtin_memset(panels + (half * stored + units) * kTileSide, 0,
                     static_cast<size_t>(stored - units) * kTileSide * 4);
  }
}

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
        strips[at++] = {row, rows, span.n, span.k, tile_rows(source, g.a_stride * 2)};
        continue;
      }
      if constexpr (kUnits) {
        const int64_t units = padded_units(span.k), upper = rows < kTileSide ? rows : kTileSide;
        strips[at++] = {row, rows, span.n, span.k, tile_units(copied, units)};
        pack_rows<BFloat16Pairs>(copied, kTileSide, source, g.a_stride, upper, span.k);
        pack_rows<BFloat16Pairs>(copied + units * kTileSide, kTileSide, source + upper * g.a_stride, g.a_stride,
                                 rows - upper, span.k);
        pad_units(copied, span.k);
      } else {
        strips[at++] = {row, rows, span.n, span.k, tile_rows(copied, stored * 2)};
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
  TileSide side = {};

  // widest, longest: the most that any strip needs of this panel.
  void bring(int64_t panel_column, int64_t width, int64_t length, int64_t widest, int64_t longest) {
    const BFloat16* b = static_cast<const BFloat16*>(g.b);
    const bool same = panel_column == column && columns > 0;
    const bool serves = length == k || (length < k && length % kTileNumbers == 0);
    if constexpr (kOrder == WeightOrder::kPacked) {
      if (same && serves) return;
      const int64_t units = units_of<BFloat16Pairs>(g.packed_inputs);
      const float* packed = static_cast<const float*>(g.b) + panel_column * units;
      hold(panel_column, kPanel, length, tile_units(packed, units));
      if (length % kTileNumbers != 0) side = cut_off(packed, units, length, widest);
    } else if constexpr (kOrder == WeightOrder::kGradient || kOrder == WeightOrder::kTurned) {
      if (same && serves && width <= columns) return;
      const bool all = longest % kTileNumbers == 0 && length % kTileNumbers == 0;
      const int64_t rows = all ? longest : length, units = padded_units(rows);
      float* pairs = scratch_of<float>(kScratchB, static_cast<size_t>((units + 1) * kPanel));
      float* second = pairs + units * kTileSide;
      if constexpr (kOrder == WeightOrder::kGradient) {
        pack_column_pairs(pairs, second, b + panel_column, g.b_stride, rows, widest);
      } else {
        const BFloat16* outputs = b + panel_column * g.b_stride;
        const int64_t upper = widest < kTileSide ? widest : kTileSide;
        pack_rows<BFloat16Pairs>(pairs, kTileSide, outputs, g.b_stride, upper, rows);
        if (widest > upper) {
          pack_rows<BFloat16Pairs>(second, kTileSide, outputs + upper * g.b_stride, g.b_stride, widest - upper, rows);
        }
      }
      pad_units(pairs, rows);
      hold(panel_column, widest, rows, tile_units(pairs, units));
    } else {
      if (same && serves && width == columns) return;
      const BFloat16* rows = b + panel_column * g.b_stride;
      hold(panel_column, width, length, tile_rows(rows, g.b_stride * 2));
      if (width % kTileSide == 0 && length % kTileNumbers == 0) return;
      const int64_t stored = padded(length);
      float* copy = scratch_of<float>(kScratchB, static_cast<size_t>(kTileSpan * stored / 2));
      pad_rows(reinterpret_cast<BFloat16*>(copy), kTileSpan, stored, rows, g.b_stride, width, length);
      side = tile_rows(copy, stored * 2);
    }
  }

 private:
  void hold(int64_t panel_column, int64_t width, int64_t length, const TileSide& held) {
    column = panel_column;
    columns = width;
    k = length;
    side = held;
  }

  // The leading `length` numbers along k of packed panels, with zeros behind them.
  static TileSide cut_off(const float* packed, int64_t packed_units, int64_t length, int64_t widest) {
    const int64_t units = units_of<BFloat16Pairs>(length), stored = padded_units(length);
    float* copy = scratch_of<float>(kScratchB, static_cast<size_t>(2 * stored * kTileSide));
    for (int64_t half = 0; half * kTileSide < widest; ++half) {
      float* to = copy + half * stored * kTileSide;
      __builtin_memcpy(to, packed + half * packed_units * kTileSide, static_cast<size_t>(units) * kTileBytes);
      if (length % 2 == 0) continue;
      float* last = to + (units - 1) * kTileSide;
      store(last, bit_cast<Float>(bit_cast<Int>(load(last)) & 0xffff));
    }
    pad_units(copy, length);
    return tile_units(copy, stored);
  }
};

// What is done while the next product runs: its sums become outputs, piece by piece, and lines of the next panel are
// asked for. A product keeps the tile unit busy for 64 cycles a step, in which the rest of the core can do some forty
// operations at no cost; so pieces are small: four rows, or, where sums are to be turned, a square of 16.
template <WeightOrder kOrder>
struct FinishMeanwhile {
  explicit FinishMeanwhile(const SpanGemm& gemm) : g(gemm) {}

  const SpanGemm& g;
  Ahead ahead = {};
  int64_t lines = 0;  // asked for each step
  const float* sums = nullptr;
  int64_t row = 0, rows = 0, column = 0, width = 0;  // what `sums` holds
  int64_t piece = 0, pieces = 0, steps = 1, credit = 0;

  DYNABERT_INLINE void step() {
    for (int64_t i = 0; i < lines; ++i) ahead.ask();
    credit += pieces;
    while (credit >= steps) {
      credit -= steps;
      finish_piece();
    }
  }

  // Hands over the sums of a product.
  void hand_over(const float* finished, const TileStrip& strip, int64_t first_column, int64_t columns) {
    sums = finished;
    row = strip.row;
    rows = strip.rows;
    column = first_column;
    width = columns;
    piece = 0;
    pieces = kOrder == WeightOrder::kRows ? (rows > kTileSide ? 2 : 1) * (width > kTileSide ? 2 : 1)
                                          : (rows + kRowsOfPiece - 1) / kRowsOfPiece;
  }
  // Spreads the pieces evenly over the steps of the next product.
  void share_among(int64_t next_steps) {
    steps = next_steps;
    credit = 0;
  }
  void finish_rest() {
    while (piece < pieces) finish_piece();
    pieces = 0;
  }

 private:
  static constexpr int64_t kRowsOfPiece = 4;

  [[gnu::noinline]] void finish_piece() {
    constexpr bool kGradient = kOrder == WeightOrder::kGradient;
    if constexpr (kOrder == WeightOrder::kRows) {
      const int64_t down = width > kTileSide ? piece / 2 : piece, across = width > kTileSide ? piece % 2 : 0;
      const int64_t first_row = down * kTileSide, first_column = across * kTileSide;
      const int64_t here_rows = rows - first_row < kTileSide ? rows - first_row : kTileSide;
      const int64_t here = width - first_column < kTileSide ? width - first_column : kTileSide;
      turn_square(sums + first_column * kTileSpan + first_row, square);
      finish_strip<NativeBFloat16, kGradient>(g, row + first_row, here_rows, column + first_column, here, square);
    } else {
      const int64_t first_row = piece * kRowsOfPiece;
      const int64_t here_rows = rows - first_row < kRowsOfPiece ? rows - first_row : kRowsOfPiece;
      finish_strip<NativeBFloat16, kGradient>(g, row + first_row, here_rows, column, width, sums + first_row * kPanel);
    }
    ++piece;
  }

  // One square of turned sums, [output][row], as rows of kPanel numbers.
  static DYNABERT_INLINE void turn_square(const float* turned, float* out) {
    Float square[kTileSide];
#pragma GCC unroll 16
    for (int i = 0; i < kTileSide; ++i) square[i] = load(turned + i * kTileSpan);
    transpose_square(square);
#pragma GCC unroll 16
    for (int i = 0; i < kTileSide; ++i) store(out + i * kPanel, square[i]);
  }
  alignas(64) float square[kTileSide * kPanel];
};

template <class Tiles, WeightOrder kOrder>
void run_tile_panels(const SpanGemm& g, const TileStrip* strips, int64_t count, int64_t begin, int64_t end) {
  constexpr bool kGradient = kOrder == WeightOrder::kGradient;
  float* sums = scratch_of<float>(kScratchD, static_cast<size_t>(2 * kTileSpan * kPanel));
  float* others = sums + kTileSpan * kPanel;
  Tiles tiles;
  TileWeights<kOrder> weights{g};
  FinishMeanwhile<kOrder> meanwhile{g};
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
    if (panel + 1 < end && reach > column + kPanel) {
      const int64_t next = reach - column - kPanel < kPanel ? reach - column - kPanel : kPanel;
      const BFloat16* b = static_cast<const BFloat16*>(g.b);
      if constexpr (kOrder == WeightOrder::kPacked) {
        const float* packed = static_cast<const float*>(g.b);
        const int64_t units = units_of<BFloat16Pairs>(g.packed_inputs);
        ahead = Ahead::of(packed + (column + kPanel) * units, units * kTileSide, (next + kTileSide - 1) / kTileSide,
                          units_of<BFloat16Pairs>(longest) * kTileSide);
      } else if constexpr (kGradient) {
        ahead = Ahead::of(b + column + kPanel, g.b_stride, longest, next);
      } else {
        ahead = Ahead::of(b + (column + kPanel) * g.b_stride, g.b_stride, next, longest);
      }
    }
    meanwhile.ahead = ahead;
    meanwhile.lines = (ahead.rows * ahead.lines + steps - 1) / steps;
    for (int64_t s = 0; s < count; ++s) {
      const TileStrip& strip = strips[s];
      if (strip.n <= column) continue;
      const int64_t width = strip.n - column < kPanel ? strip.n - column : kPanel;
      weights.bring(column, width, strip.k, widest, longest);
      ask_for_tile<NativeBFloat16, kGradient>(g, strip.row, strip.rows, column, width);
      const int64_t here = padded(strip.k) / kTileNumbers;
      meanwhile.share_among(here);
      if constexpr (kOrder == WeightOrder::kRows) {
        multiply_tiles(tiles, width, strip.rows, weights.side, strip.side, here, sums, kTileSpan, false, meanwhile);
      } else {
        multiply_tiles(tiles, strip.rows, width, strip.side, weights.side, here, sums, kPanel, false, meanwhile);
      }
      meanwhile.finish_rest();
      meanwhile.hand_over(sums, strip, column, width);
      float* const used = sums;
      sums = others;
      others = used;
    }
  }
  meanwhile.finish_rest();
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
  // Turning 32 outputs' weights are k / 16 squares for each panel, turning sums four for each 32 rows.
  int64_t longest = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) longest = g.spans[s].k > longest ? g.spans[s].k : longest;
  if (2 * g.row_block >= longest) return run_tile_tasks<Tiles, WeightOrder::kTurned>(g, begin, end);
  run_tile_tasks<Tiles, WeightOrder::kRows>(g, begin, end);
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
