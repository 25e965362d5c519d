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

// The processor's. Between its constructor and its destructor a thread has the tiles; one at a time.
struct ProcessorTiles {
  ProcessorTiles() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, unused[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
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

// The same in memory, for tests on processors without tiles.
struct EmulatedTiles {
  EmulatedTiles() = default;
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  template <int kTile>
  void zero() {
    for (Int& row : tiles_[kTile]) row = Int{};
  }
  template <int kTile>
  void load(const void* rows, int64_t stride_bytes) {
    for (int64_t i = 0; i < kTileSide; ++i) {
      __builtin_memcpy(&tiles_[kTile][i], static_cast<const char*>(rows) + i * stride_bytes, sizeof(Int));
    }
  }
  template <int kTile>
  void store(void* rows, int64_t stride_bytes) {
    for (int64_t i = 0; i < kTileSide; ++i) {
      __builtin_memcpy(static_cast<char*>(rows) + i * stride_bytes, &tiles_[kTile][i], sizeof(Int));
    }
  }
  // As the processor does it: two sums, of the first and of the second numbers of the pairs, which are then added.
  template <int kSums, int kLeft, int kRight>
  void add_bfloat16() {
    for (int64_t i = 0; i < kTileSide; ++i) {
      Float firsts = {}, seconds = {};
      for (int64_t u = 0; u < kTileUnits; ++u) {
        const Int left = tiles_[kLeft][i][u] - Int{}, right = tiles_[kRight][u], upper = Int{} - 0x10000;
        firsts = fma(bit_cast<Float>(left << 16), bit_cast<Float>(right << 16), firsts);
        seconds = fma(bit_cast<Float>(left & upper), bit_cast<Float>(right & upper), seconds);
      }
      tiles_[kSums][i] = bit_cast<Int>(bit_cast<Float>(tiles_[kSums][i]) + (firsts + seconds));
    }
  }
  template <int kSums, int kLeft, int kRight>
  void add_bytes() {
    for (int64_t i = 0; i < kTileSide; ++i) {
      Int sums = tiles_[kSums][i];
      for (int64_t u = 0; u < kTileUnits; ++u) {
        const Int left = tiles_[kLeft][i][u] - Int{}, right = tiles_[kRight][u];
        asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
      }
      tiles_[kSums][i] = sums;
    }
  }

 private:
  Int tiles_[8][kTileSide] = {};
};

// out[i * out_stride + j], i < 16 kHigh, j < 16 kWide, = sum over `steps` times 32 numbers of left row i times right
// column j, on top of what out holds if `add`. left: rows of bfloat16, left_stride bytes apart. right: unit u of column
// j at right[u * right_width + j]. `ahead` is asked for `lines` lines each step.
template <int kHigh, int kWide, class Tiles>
DYNABERT_INLINE void multiply_tiles(Tiles& tiles, const void* left, int64_t left_stride, const float* right,
                                    int64_t right_width, int64_t steps, float* out, int64_t out_stride, bool add,
                                    Ahead& ahead, int64_t lines) {
  const int64_t row_bytes = out_stride * 4, right_stride = right_width * 4;
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
  const char* a = static_cast<const char*>(left);
  for (int64_t step = 0; step < steps; ++step) {
    tiles.template load<4>(a, left_stride);
    tiles.template load<6>(right, right_stride);
    tiles.template add_bfloat16<0, 4, 6>();
    if constexpr (kWide == 2) {
      tiles.template load<7>(right + kTileSide, right_stride);
      tiles.template add_bfloat16<1, 4, 7>();
    }
    if constexpr (kHigh == 2) {
      tiles.template load<5>(a + kTileSide * left_stride, left_stride);
      tiles.template add_bfloat16<2, 5, 6>();
      if constexpr (kWide == 2) tiles.template add_bfloat16<3, 5, 7>();
    }
    for (int64_t i = 0; i < lines; ++i) ahead.ask();
    a += kTileBytes;
    right += kTileUnits * right_width;
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
template <class Tiles>
void multiply_tiles(Tiles& tiles, int64_t rows, int64_t columns, const void* left, int64_t left_stride,
                    const float* right, int64_t right_width, int64_t steps, float* out, int64_t out_stride, bool add,
                    Ahead& ahead, int64_t lines) {
  const auto run = [&](auto high, auto wide) {
    multiply_tiles<decltype(high)::value, decltype(wide)::value>(tiles, left, left_stride, right, right_width, steps,
                                                                 out, out_stride, add, ahead, lines);
  };
  if (rows > kTileSide) {
    columns > kTileSide ? run(TileCount<2>{}, TileCount<2>{}) : run(TileCount<2>{}, TileCount<1>{});
  } else {
    columns > kTileSide ? run(TileCount<1>{}, TileCount<2>{}) : run(TileCount<1>{}, TileCount<1>{});
  }
}

// The same with nothing to ask for.
template <class Tiles>
void multiply_tiles(Tiles& tiles, int64_t rows, int64_t columns, const void* left, int64_t left_stride,
                    const float* right, int64_t right_width, int64_t steps, float* out, int64_t out_stride, bool add) {
  Ahead nothing = {};
  multiply_tiles(tiles, rows, columns, left, left_stride, right, right_width, steps, out, out_stride, add, nothing, 0);
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
