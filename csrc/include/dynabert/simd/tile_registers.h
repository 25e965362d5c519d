// Tile registers (AMX): eight of 16 rows of 64 bytes, and products of two of them. Compiled for AVX-512 only: no
// include guard.
//
// A product adds to a tile of 16 x 16 sums: row i of the left tile are 32 neighbouring bfloat16 (or 64 bytes) of row i
// of the left matrix as they lie in memory; row u of the right tile is unit u of 16 columns, a unit being 2 neighbours
// along the sum (or 4 bytes): the order of `pack_rows` and of packed weights. Written as assembler, so that they appear
// nowhere by themselves: callers ask use_tiles().

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileSide = 16;             // rows of a tile, and sums in a row
constexpr int64_t kTileBytes = 64;            // of a row
constexpr int64_t kTileUnits = 16;            // along the sum
constexpr int64_t kTileNumbers = 32;          // bfloat16 along the sum
constexpr int64_t kTileSpan = 2 * kTileSide;  // rows and columns of a product of four tiles

// Tiles 0 to 3 hold sums. 4 and 5 are left sides, 6 and 7 right ones: of 1 to 16 units along the sum.
constexpr int kFirstLeft = 4, kFirstRight = 6;

// The processor's. Between its constructor and its destructor a thread has the tiles; one at a time.
struct ProcessorTiles {
  explicit ProcessorTiles(int64_t units = kTileUnits) {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, unused[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    for (int tile = kFirstLeft; tile < kFirstRight; ++tile) shape.bytes[tile] = static_cast<uint16_t>(4 * units);
    for (int tile = kFirstRight; tile < 8; ++tile) shape.rows[tile] = static_cast<uint8_t>(units);
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~ProcessorTiles() { asm volatile("tilerelease"); }
  ProcessorTiles(const ProcessorTiles&) = delete;
  ProcessorTiles& operator=(const ProcessorTiles&) = delete;

  template <int kTile>
  DYNABERT_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  DYNABERT_INLINE void load(const void* rows, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride_bytes), "i"(kTile) : "memory");
  }
  template <int kTile>
  DYNABERT_INLINE void store(void* rows, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride_bytes), "i"(kTile) : "memory");
  }
  template <int kSums, int kLeft, int kRight>
  DYNABERT_INLINE void add_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
  }
  // Unsigned bytes on the left, signed ones on the right.
  template <int kSums, int kLeft, int kRight>
  DYNABERT_INLINE void add_bytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
  }
};

// Numbers below the normal ones count as 0, going in and coming out, as they do in the processor's tile products of
// bfloat16. The barriers keep the arithmetic, from memory to memory, in between.
struct NoSubnormals {
  unsigned before = _mm_getcsr();
  NoSubnormals() {
    constexpr unsigned kBoth = 0x8040;
    _mm_setcsr(before | kBoth);
    asm volatile("" ::: "memory");
  }
  ~NoSubnormals() {
    asm volatile("" ::: "memory");
    _mm_setcsr(before);
  }
};

// The same in memory, for tests on processors without tiles.
struct EmulatedTiles {
  explicit EmulatedTiles(int64_t units = kTileUnits) : units_(units) {}
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  template <int kTile>
  void zero() {
    for (Int& row : tiles_[kTile]) row = Int{};
  }
  template <int kTile>
  void load(const void* rows, int64_t stride_bytes) {
    const int64_t count = kTile >= kFirstRight ? units_ : kTileSide;
    const int64_t bytes = kTile >= kFirstLeft && kTile < kFirstRight ? 4 * units_ : kTileBytes;
    for (int64_t i = 0; i < count; ++i) {
      __builtin_memcpy(&tiles_[kTile][i], static_cast<const char*>(rows) + i * stride_bytes,
                       static_cast<size_t>(bytes));
    }
  }
  template <int kTile>
  void store(void* rows, int64_t stride_bytes) {
    for (int64_t i = 0; i < kTileSide; ++i) {
      __builtin_memcpy(static_cast<char*>(rows) + i * stride_bytes, &tiles_[kTile][i], sizeof(Int));
    }
  }
  // In the processor's order: even and odd numbers summed apart, both added to the sums at the end.
  template <int kSums, int kLeft, int kRight>
  void add_bfloat16() {
    const NoSubnormals as_the_processor;
    for (int64_t i = 0; i < kTileSide; ++i) {
      Float even = {}, odd = {};
      for (int64_t u = 0; u < units_; ++u) {
        const Int left = tiles_[kLeft][i][u] - Int{}, right = tiles_[kRight][u];
        even = fma(bit_cast<Float>(left << 16), bit_cast<Float>(right << 16), even);
        odd = fma(bit_cast<Float>(left & ~0xffff), bit_cast<Float>(right & ~0xffff), odd);
      }
      tiles_[kSums][i] = bit_cast<Int>(bit_cast<Float>(tiles_[kSums][i]) + (even + odd));
    }
  }
  template <int kSums, int kLeft, int kRight>
  void add_bytes() {
    for (int64_t i = 0; i < kTileSide; ++i) {
      Int sums = tiles_[kSums][i];
      for (int64_t u = 0; u < units_; ++u) {
        const Int left = tiles_[kLeft][i][u] - Int{}, right = tiles_[kRight][u];
        asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
      }
      tiles_[kSums][i] = sums;
    }
  }

 private:
  int64_t units_;
  Int tiles_[8][kTileSide] = {};
};

template <class T>
struct TileKind {
  using Tiles = T;
};
// Calls `run` with the kind of tiles in use; returns false where there are none.
template <class Run>
DYNABERT_INLINE bool with_tiles(const Run& run) {
  const Isa isa = active_isa();
  if (isa == Isa::kAmx) {
    run(TileKind<ProcessorTiles>{});
  } else if (isa == Isa::kAmxEmulated) {
    run(TileKind<EmulatedTiles>{});
  }
  return isa == Isa::kAmx || isa == Isa::kAmxEmulated;
}

// What a thread does while the tile unit multiplies: called once after each step.
struct OnlyAhead {
  Ahead& ahead;
  int64_t lines;  // asked for each step
  DYNABERT_INLINE void step() {
    for (int64_t i = 0; i < lines; ++i) ahead.ask();
  }
};

// One side of a product: its rows, or its units; bytes from one of them to the next, from one step to the next, and
// from its first tile to the second. A tile whose rows follow each other in memory is loaded a quarter faster than one
// with every other line: so units lie in panels of 16.
struct TileSide {
  const void* data;
  int64_t stride, step, second;
};
DYNABERT_INLINE TileSide tile_rows(const void* rows, int64_t stride_bytes) {
  return {rows, stride_bytes, kTileBytes, kTileSide * stride_bytes};
}
// Panels of `units` units each.
DYNABERT_INLINE TileSide tile_units(const void* panels, int64_t units) {
  return {panels, kTileBytes, kTileUnits * kTileBytes, units * kTileBytes};
}

// out[i * out_stride + j], i < 16 kHigh, j < 16 kWide, = sum over `steps` times 32 numbers of left row i times right
// column j, on top of what out holds if `add`.
template <int kHigh, int kWide, class Tiles, class Meanwhile>
DYNABERT_INLINE void multiply_tiles(Tiles& tiles, const TileSide& left, const TileSide& right, int64_t steps,
                                    float* out, int64_t out_stride, bool add, Meanwhile& meanwhile) {
  const int64_t row_bytes = out_stride * 4;
  float* const lower = out + kTileSide * out_stride;
  if (add) {
    tiles.template load<0>(out, row_bytes);
    if constexpr (kWide == 2) tiles.template load<1>(out + kTileSide, row_bytes);
    if constexpr (kHigh == 2) tiles.template load<2>(lower, row_bytes);
    if constexpr (kHigh == 2 && kWide == 2) tiles.template load<3>(lower + kTileSide, row_bytes);
  } else {
    tiles.template zero<0>();
    if constexpr (kWide == 2) tiles.template zero<1>();
    if constexpr (kHigh == 2) tiles.template zero<2>();
    if constexpr (kHigh == 2 && kWide == 2) tiles.template zero<3>();
  }
  const char* a = static_cast<const char*>(left.data);
  const char* b = static_cast<const char*>(right.data);
  for (int64_t step = 0; step < steps; ++step) {
    tiles.template load<4>(a, left.stride);
    tiles.template load<6>(b, right.stride);
    tiles.template add_bfloat16<0, 4, 6>();
    if constexpr (kWide == 2) {
      tiles.template load<7>(b + right.second, right.stride);
      tiles.template add_bfloat16<1, 4, 7>();
    }
    if constexpr (kHigh == 2) {
      tiles.template load<5>(a + left.second, left.stride);
      tiles.template add_bfloat16<2, 5, 6>();
      if constexpr (kWide == 2) tiles.template add_bfloat16<3, 5, 7>();
    }
    meanwhile.step();
    a += left.step;
    b += right.step;
  }
  tiles.template store<0>(out, row_bytes);
  if constexpr (kWide == 2) tiles.template store<1>(out + kTileSide, row_bytes);
  if constexpr (kHigh == 2) tiles.template store<2>(lower, row_bytes);
  if constexpr (kHigh == 2 && kWide == 2) tiles.template store<3>(lower + kTileSide, row_bytes);
}

template <int kCount>
struct TileCount {
  static constexpr int value = kCount;
};

// The same for 1 to 32 rows and columns: as many tiles as hold them.
template <class Tiles, class Meanwhile>
void multiply_tiles(Tiles& tiles, int64_t rows, int64_t columns, const TileSide& left, const TileSide& right,
                    int64_t steps, float* out, int64_t out_stride, bool add, Meanwhile&& meanwhile) {
  const auto run = [&](auto high, auto wide) {
    multiply_tiles<decltype(high)::value, decltype(wide)::value>(tiles, left, right, steps, out, out_stride, add,
                                                                 meanwhile);
  };
  if (rows > kTileSide) {
    columns > kTileSide ? run(TileCount<2>{}, TileCount<2>{}) : run(TileCount<2>{}, TileCount<1>{});
  } else {
    columns > kTileSide ? run(TileCount<1>{}, TileCount<2>{}) : run(TileCount<1>{}, TileCount<1>{});
  }
}

// The same with nothing else to do, for units that lie `right_width` numbers apart.
template <class Tiles>
void multiply_tiles(Tiles& tiles, int64_t rows, int64_t columns, const void* left, int64_t left_stride,
                    const float* right, int64_t right_width, int64_t steps, float* out, int64_t out_stride, bool add) {
  Ahead nothing = {};
  const TileSide units = {right, right_width * 4, kTileUnits * right_width * 4, kTileBytes};
  multiply_tiles(tiles, rows, columns, tile_rows(left, left_stride), units, steps, out, out_stride, add,
                 OnlyAhead{nothing, 0});
}

// Rows of `length` bfloat16 as they lie, each followed by zeros up to `padded_length`, a multiple of 32, and rows of
// zeros up to `padded_rows`.
inline void pad_rows(BFloat16* out, int64_t padded_rows, int64_t padded_length, const BFloat16* rows, int64_t stride,
                     int64_t count, int64_t length) {
  const int64_t whole = length / kTileNumbers * kTileNumbers;
  const __mmask32 rest = static_cast<__mmask32>((uint64_t{1} << (length - whole)) - 1);
  for (int64_t i = 0; i < padded_rows; ++i, out += padded_length, rows += stride) {
    if (i < count) {
      for (int64_t j = 0; j < whole; j += kTileNumbers) _mm512_storeu_si512(out + j, _mm512_loadu_si512(rows + j));
      if (whole < padded_length) _mm512_storeu_si512(out + whole, _mm512_maskz_loadu_epi16(rest, rows + whole));
    } else {
      for (int64_t j = 0; j < padded_length; j += kTileNumbers) _mm512_storeu_si512(out + j, _mm512_setzero_si512());
    }
  }
}

// `count` units of a panel of 32 columns.
DYNABERT_INLINE void clear_units(float* units, int64_t count) {
  for (int64_t i = 0; i < count * kTileSpan; i += kTileSide) store(units + i, Float{});
}

DYNABERT_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
