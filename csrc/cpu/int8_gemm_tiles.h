// Products of int8 over row spans through tile registers. A part of int8_gemm_kernels.h, for AVX-512 only.
//
// A panel of packed weights is the right side as it lies. The rows are copied once for each block, a step's 16 or 32
// times 64 bytes end to end: no load of a tile then crosses a cache line, or goes past the last row.
//
// A stage is a strip of up to 32 rows times a few chunks of a panel. Its tiles start from the chunk's offsets, and
// their int32 sums are stored. They become floats while the tiles work on the next stage, a few rows after each step:
// two sets of sums take turns. The order of an output's float sums is that without tiles, and the integers are exact:
// so are the results. Each chunk costs four stores of tiles and their conversion, about as much as three steps of 64
// inputs.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr int64_t kStageChunks = 4;                     // 16 KB of sums
constexpr int64_t kStageSums = kTileSpan * kInt8Panel;  // of one chunk
constexpr int64_t kRowsAtOnce = 4;                      // that become floats

// Up to 32 rows of one span, copied: 16 or 32 rows of 64 bytes for each step of a product.
struct ByteSide {
  int64_t row, rows, n, chunks;
  const uint8_t* tiles;

  int64_t step_bytes() const { return rows > kTileSide ? 2 * kTileSide * kTileBytes : kTileSide * kTileBytes; }
};

// The strips of rows first to last - 1; returns how many. A step takes `units` units.
inline int64_t copy_byte_sides(const Int8Gemm& g, int64_t units, int64_t first, int64_t last,
                               const ByteSide** sides_out) {
  int64_t count = 0, bytes = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    if (begin >= end) continue;
    const int64_t steps = g.cut.of(span.k) * g.cut.units / units;
    count += (end - begin + kTileSpan - 1) / kTileSpan;
    bytes += round_up(end - begin, kTileSide) * steps * kTileBytes;
  }
  ByteSide* sides = scratch_of<ByteSide>(kScratchC, static_cast<size_t>(count));
  uint8_t* copy = scratch_of<uint8_t>(kScratchA, static_cast<size_t>(bytes));
  const int64_t here = units * kInt8Unit;
  int64_t at = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    const int64_t steps = g.cut.of(span.k) * g.cut.units / units;
    for (int64_t row = begin; row < end; row += kTileSpan) {
      const int64_t rows = end - row < kTileSpan ? end - row : kTileSpan;
      sides[at] = {row, rows, span.n, g.cut.of(span.k), copy};
      const int64_t step_bytes = sides[at++].step_bytes();
      for (int64_t i = 0; i < rows; ++i) {
        const uint8_t* from = g.a + (row + i) * g.a_stride;
        uint8_t* to = copy + i * kTileBytes;
        if (here == kTileBytes) {
          for (int64_t step = 0; step < steps; ++step, from += kTileBytes, to += step_bytes) {
            const Int line = load_int(from);
            __builtin_memcpy(to, &line, sizeof line);
          }
        } else {
          for (int64_t step = 0; step < steps; ++step, from += here, to += step_bytes) {
            __builtin_memcpy(to, from, static_cast<size_t>(here));
          }
        }
      }
      copy += steps * step_bytes;  // what is in rows beyond the last goes into sums that nobody reads
    }
  }
  *sides_out = sides;
  return count;
}

// What a stage has summed: chunk c, row i, output j at totals[c * kStageSums + i * kInt8Panel + j]. `sums`: the
// strip's float sums.
struct ByteStage {
  const ByteSide* side;
  int64_t column, chunk, chunks;
  const int32_t* totals;
  float* sums;
};

template <class T>
struct StageToFloats {
  const Int8Gemm& g;
  ByteStage stage = {};
  int64_t next = 0, rows = 0;  // the first row that is still to do, and how many there are

  void start(const ByteStage& stage_to_do) {
    stage = stage_to_do;
    next = 0;
    rows = stage.side->rows;
  }

  // Does its share of the rows left when there are so many calls left, this one included.
  DYNABERT_INLINE void advance(int64_t calls) {
    const int64_t groups = (rows - next + kRowsAtOnce - 1) / kRowsAtOnce, share = (groups + calls - 1) / calls;
    for (int64_t i = 0; i < share; ++i) turn();
  }

 private:
  void turn() {
    const int64_t here = rows - next < kRowsAtOnce ? rows - next : kRowsAtOnce;
    if (here == kRowsAtOnce) {
      turn_rows<kRowsAtOnce>(next);
    } else {
      for (int64_t i = 0; i < here; ++i) turn_rows<1>(next + i);
    }
    const bool last = stage.chunk + stage.chunks == stage.side->chunks;
    if (last) {
      const int64_t left = stage.side->n - stage.column, width = left < kInt8Panel ? left : kInt8Panel;
      finish_strip<T>(g, stage.side->row + next, here, stage.column, width, stage.sums + next * kInt8Panel);
    }
    next += here;
  }

  template <int kRows>
  DYNABERT_INLINE void turn_rows(int64_t row) {
    constexpr int kLane = kLanes<float>;
    const int32_t* totals = stage.totals + row * kInt8Panel;
    const float* scale = g.scale + stage.chunk * g.columns + stage.column;
    float* at = stage.sums + row * kInt8Panel;
    const auto total = [&](int i, int r) {
      return __builtin_convertvector(load_int(totals + i * kInt8Panel + r * kLane), Float);
    };
    Float sums[kRows][2];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const Float scales = load(scale + r * kLane);
        sums[i][r] =
            stage.chunk == 0 ? total(i, r) * scales : fma(total(i, r), scales, load(at + i * kInt8Panel + r * kLane));
      }
    }
    for (int64_t c = 1; c < stage.chunks; ++c) {
      totals += kStageSums;
      scale += g.columns;
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) sums[i][r] = fma(total(i, r), load(scale + r * kLane), sums[i][r]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) store(at + i * kInt8Panel + r * kLane, sums[i][r]);
    }
  }
};

// kHigh times 16 rows from `left` on times `chunks` chunks from `panel` on into `totals`. After each step `then` is
// called with the number of steps left, that one included.
template <int kHigh, class Tiles, class Then>
DYNABERT_INLINE void multiply_stage(Tiles& tiles, const Int8Gemm& g, int64_t units, const uint8_t* left,
                                    const int8_t* panel, const int32_t* offset, int64_t chunks, int32_t* totals,
                                    Then then) {
  constexpr int64_t kRowBytes = kInt8Panel * kInt8Unit;
  int64_t steps = chunks * (g.cut.units / units);
  for (int64_t chunk = 0; chunk < chunks; ++chunk, offset += g.columns, totals += kStageSums) {
    tiles.template load<0>(offset, 0);
    tiles.template load<1>(offset + kTileSide, 0);
    if constexpr (kHigh == 2) {
      tiles.template load<2>(offset, 0);
      tiles.template load<3>(offset + kTileSide, 0);
    }
    for (int64_t done = 0; done < g.cut.units; done += units) {
      tiles.template load<4>(left, kTileBytes);
      tiles.template load<6>(panel, kRowBytes);
      tiles.template add_bytes<0, 4, 6>();
      tiles.template load<7>(panel + kTileBytes, kRowBytes);
      tiles.template add_bytes<1, 4, 7>();
      if constexpr (kHigh == 2) {
        tiles.template load<5>(left + kTileSide * kTileBytes, kTileBytes);
        tiles.template add_bytes<2, 5, 6>();
        tiles.template add_bytes<3, 5, 7>();
      }
      left += kHigh * kTileSide * kTileBytes;
      panel += units * kRowBytes;
      then(steps--);
    }
    tiles.template store<0>(totals, kRowBytes);
    tiles.template store<1>(totals + kTileSide, kRowBytes);
    if constexpr (kHigh == 2) {
      tiles.template store<2>(totals + kTileSide * kInt8Panel, kRowBytes);
      tiles.template store<3>(totals + kTileSide * kInt8Panel + kTileSide, kRowBytes);
    }
  }
}

template <class T, class Tiles>
void run_byte_stages(const Int8Gemm& g, const ByteSide* sides, int64_t count, int64_t first_row, int64_t begin,
                     int64_t end) {
  const int64_t chunk_bytes = g.cut.units * kInt8Panel * kInt8Unit, panel_bytes = g.chunks * chunk_bytes;
  const int64_t units = units_of_a_tile(g.cut.units);
  float* const sums = scratch_of<float>(kScratchD, static_cast<size_t>(g.row_block * kInt8Panel));
  int32_t* totals = scratch_of<int32_t>(kScratchB, static_cast<size_t>(2 * kStageChunks * kStageSums));
  int32_t* others = totals + kStageChunks * kStageSums;
  int64_t most = 0;
  for (int64_t s = 0; s < count; ++s) most = sides[s].chunks > most ? sides[s].chunks : most;
  StageToFloats<T> before{g};
  Tiles tiles(units);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * kInt8Panel;
    for (int64_t from = 0; from < most; from += kStageChunks) {
      const int64_t to = from + kStageChunks;
      int64_t steps = 0;
      for (int64_t s = 0; s < count; ++s) {
        if (sides[s].n <= column || sides[s].chunks <= from) continue;
        steps += ((sides[s].chunks < to ? sides[s].chunks : to) - from) * (g.cut.units / units);
      }
      if (steps == 0) continue;
      // The weights of the next stage: their lines are asked for step by step.
      const int8_t* weights = g.b + panel * panel_bytes;
      const int64_t left = to < most ? most - to : panel + 1 < end ? most : 0;
      Ahead ahead = Ahead::of(weights + (to < most ? to * chunk_bytes : panel_bytes), 0, left > 0 ? 1 : 0,
                              (left < kStageChunks ? left : kStageChunks) * chunk_bytes);
      const int64_t lines = (ahead.rows * ahead.lines + steps - 1) / steps;
      for (int64_t s = 0; s < count; ++s) {
        const ByteSide& side = sides[s];
        if (side.n <= column || side.chunks <= from) continue;
        const int64_t chunks = (side.chunks < to ? side.chunks : to) - from;
        if (chunks == side.chunks - from) {
          const int64_t width = side.n - column < kInt8Panel ? side.n - column : kInt8Panel;
          ask_to_write(static_cast<T*>(g.c) + side.row * g.c_stride + column, g.c_stride, side.rows, width);
        }
        const auto then = [&](int64_t calls) {
          for (int64_t i = 0; i < lines; ++i) ahead.ask();
          before.advance(calls);
        };
        const auto run = [&](auto high) {
          multiply_stage<decltype(high)::value>(
              tiles, g, units, side.tiles + from * (g.cut.units / units) * side.step_bytes(),
              weights + from * chunk_bytes, g.offset + from * g.columns + column, chunks, totals, then);
        };
        side.rows > kTileSide ? run(TileCount<2>{}) : run(TileCount<1>{});
        before.start({&side, column, from, chunks, totals, sums + (side.row - first_row) * kInt8Panel});
        int32_t* const full = totals;
        totals = others;
        others = full;
      }
    }
  }
  before.advance(1);
}

template <class T, class Tiles>
void run_byte_tile_tasks(const Int8Gemm& g, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t block = begin / g.panels, first = g.first_row + block * g.row_block, last = first + g.row_block;
    const int64_t stop = (block + 1) * g.panels < end ? (block + 1) * g.panels : end;
    const ByteSide* sides = nullptr;
    const int64_t count = copy_byte_sides(g, units_of_a_tile(g.cut.units), first, last, &sides);
    if (count > 0) {
      run_byte_stages<T, Tiles>(g, sides, count, first, begin - block * g.panels, stop - block * g.panels);
    }
    begin = stop;
  }
}

template <class Tiles>
void run_byte_tiles(const Int8Gemm& g, int64_t begin, int64_t end) {
  if (g.dtype == DType::kFloat32) return run_byte_tile_tasks<float, Tiles>(g, begin, end);
  run_byte_tile_tasks<NativeBFloat16, Tiles>(g, begin, end);
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
