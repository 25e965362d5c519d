// Gradients of weights in bfloat16 through tile registers. A part of weight_gradient_kernels.h, for AVX-512 only.
//
// The sum runs over rows, so both sides are brought into the order of tiles: 32 rows of a strip of dy become up to two
// left tiles (pairs of rows, turned), the same rows of a panel of x the units of the right ones (pairs of rows, as they
// lie). Each span ends with rows of zeros up to a multiple of 32. Strips have up to 32 columns of dy, panels 32 of x;
// all else is as without tiles.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileFloats = kTileSide * kTileSide;

DYNABERT_INLINE int64_t tile_groups(const GemmSpan& span) {
  return (span.end - span.begin + kTileNumbers - 1) / kTileNumbers;
}

// Left tiles of a group of 32 rows.
DYNABERT_INLINE int64_t group_floats(const Piece& strip) {
  return strip.end - strip.begin > kTileSide ? 2 * kTileFloats : kTileFloats;
}

// One left tile: row i are pairs of column i of `rows` rows, zeros behind `rows` and `columns`.
DYNABERT_INLINE void pack_left_tile(float* tile, const BFloat16* source, int64_t stride, int64_t rows,
                                    int64_t columns) {
  Float square[kTileSide];
  if (rows == kTileNumbers && columns >= kTileSide) {
#pragma GCC unroll 16
    for (int u = 0; u < kTileUnits; ++u) {
      square[u] = BFloat16Pairs::down(source + 2 * u * stride, source + (2 * u + 1) * stride);
    }
  } else {
    const int64_t here = columns < kTileSide ? columns : kTileSide;
#pragma GCC unroll 16
    for (int u = 0; u < kTileUnits; ++u) {
      const BFloat16* line = source + 2 * u * stride;
      square[u] =
          2 * u < rows ? BFloat16Pairs::down_part(line, 2 * u + 1 < rows ? line + stride : nullptr, here) : Float{};
    }
  }
  transpose_square(square);
#pragma GCC unroll 16
  for (int i = 0; i < kTileSide; ++i) store(tile + i * kTileSide, square[i]);
}

inline void pack_tile_strips(const WeightGemm& g, const Piece* strips, int64_t num_strips, float* out, float** starts,
                             float** nexts) {
  for (int64_t i = 0; i < num_strips; ++i) {
    starts[i] = nexts[i] = out;
    for (int64_t s = 0; s < g.num_spans; ++s) {
      if (g.spans[s].n >= strips[i].end) out += tile_groups(g.spans[s]) * group_floats(strips[i]);
    }
  }
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    for (int64_t row = span.begin; row < span.end; row += kTileNumbers) {
      const int64_t rows = span.end - row < kTileNumbers ? span.end - row : kTileNumbers;
      const BFloat16* dy = static_cast<const BFloat16*>(g.dy) + row * g.dy_stride;
      for (int64_t i = 0; i < num_strips && strips[i].end <= span.n; ++i) {
        for (int64_t column = strips[i].begin; column < strips[i].end; column += kTileSide, nexts[i] += kTileFloats) {
          pack_left_tile(nexts[i], dy + column, g.dy_stride, rows, strips[i].end - column);
        }
      }
    }
  }
}

// `units`: room in each of the two panels of 16 columns.
inline void pack_tile_panel(float* out, int64_t units, const WeightGemm& g, const Piece& panel, const GemmSpan* spans,
                            int64_t count) {
  const BFloat16* x = static_cast<const BFloat16*>(g.x) + panel.begin;
  float* second = out + units * kTileSide;
  for (int64_t s = 0; s < count; ++s) {
    const GemmSpan& span = spans[s];
    if (span.k < panel.end) continue;
    const int64_t rows = span.end - span.begin, filled = units_of<BFloat16Pairs>(rows);
    const int64_t stored = tile_groups(span) * kTileUnits;
    pack_column_pairs(out, second, x + span.begin * g.x_stride, g.x_stride, rows, panel.end - panel.begin);
    const size_t rest = static_cast<size_t>((stored - filled) * kTileBytes);
    __builtin_memset(out + filled * kTileSide, 0, rest);
    __builtin_memset(second + filled * kTileSide, 0, rest);
    out += stored * kTileSide;
    second += stored * kTileSide;
  }
}

// Adds to the tile's sums what the spans of one chunk give; returns where the strip's next chunk begins. Spans that lie
// one behind the other on both sides are one product.
template <class Tiles>
const float* add_tile_spans(Tiles& tiles, const GemmSpan* spans, int64_t count, const Piece& strip, const Piece& panel,
                            const float* left, const float* right, int64_t units, float* sums, bool& added,
                            Ahead& ahead, int64_t lines) {
  const int64_t floats = group_floats(strip);
  const float *run_left = left, *run_right = right;
  int64_t groups = 0;
  const auto close = [&]() {
    if (groups > 0) {
      multiply_tiles(tiles, strip.end - strip.begin, panel.end - panel.begin,
                     TileSide{run_left, kTileBytes, floats * 4, kTileFloats * 4}, tile_units(run_right, units), groups,
                     sums, kPanel, added, OnlyAhead{ahead, lines});
      added = true;
    }
    groups = 0;
  };
  for (int64_t s = 0; s < count; ++s) {
    const int64_t here = tile_groups(spans[s]);
    const bool in_strip = spans[s].n >= strip.end, in_panel = spans[s].k >= panel.end;
    if (in_strip != in_panel) close();
    if (in_strip && in_panel) {
      if (groups == 0) {
        run_left = left;
        run_right = right;
      }
      groups += here;
    }
    if (in_strip) left += here * floats;
    if (in_panel) right += here * kTileUnits * kTileSide;
  }
  close();
  return left;
}

template <class Tiles>
void run_tile_block(const WeightGemm& g, const Piece* strips, int64_t num_strips, int64_t first_panel,
                    int64_t last_panel) {
  constexpr int64_t kTileSums = kTileSpan * kPanel;
  constexpr int64_t kChunkGroups = kChunk / kTileUnits;
  const BFloat16* x = static_cast<const BFloat16*>(g.x);
  int64_t groups = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) groups += tile_groups(g.spans[s]);
  const int64_t fitting = groups > kChunkGroups ? kGroupFloats / (num_strips * kTileSums) : 1;
  const int64_t group = fitting > 1 ? fitting : 1;

  float* packed = scratch_of<float>(kScratchA, static_cast<size_t>(groups * num_strips * 2 * kTileFloats));
  constexpr int64_t kUnits = kChunkGroups * kTileUnits;
  float* right = scratch_of<float>(kScratchB, static_cast<size_t>(2 * kUnits * kTileSide));
  float* sums = scratch_of<float>(kScratchD, static_cast<size_t>(group * num_strips * kTileSums));
  float** starts = scratch_of<float*>(kScratchC, static_cast<size_t>(num_strips * 2));
  float** nexts = starts + num_strips;
  bool* added = scratch_of<bool>(kScratchE, static_cast<size_t>(num_strips * group));
  pack_tile_strips(g, strips, num_strips, packed, starts, nexts);
  Tiles tiles;
  for (int64_t from = first_panel; from < last_panel; from += group) {
    const int64_t to = last_panel - from < group ? last_panel : from + group;
    for (int64_t i = 0; i < num_strips; ++i) nexts[i] = starts[i];
    for (int64_t i = 0; i < num_strips * group; ++i) added[i] = false;
    for (int64_t span = 0; span < g.num_spans;) {
      int64_t last = span, in_chunk = 0;
      for (; last < g.num_spans; ++last) {
        const int64_t here = tile_groups(g.spans[last]);
        if (in_chunk + here > kChunkGroups && in_chunk > 0) break;
        in_chunk += here;
      }
      for (int64_t p = from; p < to; ++p) {
        pack_tile_panel(right, kUnits, g, g.panels[p], g.spans + span, last - span);
        Ahead ahead = {};
        int64_t lines = 0;
        if (p + 1 < to || last < g.num_spans) {
          const bool same = p + 1 < to;
          const GemmSpan& first = g.spans[same ? span : last];
          const int64_t rows = same ? g.spans[last - 1].end - first.begin : first.end - first.begin;
          const Piece& next = g.panels[same ? p + 1 : from];
          ahead = Ahead::of(x + first.begin * g.x_stride + next.begin, g.x_stride, rows, next.end - next.begin);
          lines = (ahead.rows * ahead.lines + in_chunk * num_strips - 1) / (in_chunk * num_strips);
        }
        for (int64_t i = 0; i < num_strips; ++i) {
          const int64_t tile = (p - from) * num_strips + i;
          float* tile_sums = sums + tile * kTileSums;
          const float* next = add_tile_spans(tiles, g.spans + span, last - span, strips[i], g.panels[p], nexts[i],
                                             right, kUnits, tile_sums, added[tile], ahead, lines);
          if (last == g.num_spans) store_tile<NativeBFloat16>(g, strips[i], g.panels[p], tile_sums, added[tile]);
          if (p + 1 == to) nexts[i] = const_cast<float*>(next);
        }
      }
      span = last;
    }
  }
}

template <class Tiles>
void run_tile_tasks(const WeightGemm& g, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end;) {
    const int64_t strip = task / g.num_panels * g.strip_block, panel = task % g.num_panels;
    const int64_t strips = g.num_strips - strip < g.strip_block ? g.num_strips - strip : g.strip_block;
    const int64_t panels = end - task < g.num_panels - panel ? end - task : g.num_panels - panel;
    run_tile_block<Tiles>(g, g.strips + strip, strips, panel, panel + panels);
    task += panels;
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
