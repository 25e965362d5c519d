// Rows of bfloat16 as the right side of a tile product whose sum runs over rows: pairs of neighbouring rows as units.
// Compiled for AVX-512 only: no include guard; after tile_registers.h.
//
// Two ways. `pack_column_pairs`, for weights and their gradients: columns in their order, in panels of 16, which load
// faster; a panel is read many times. `pair_columns`, for attention: panels of 32 columns that stand in the order in
// which unpacking leaves them, 0-3, 8-11, 16-19, 24-27 and then the others: half the instructions, which is more where
// a panel is read a few times, and sums are brought into order once, where they are stored.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// Pairs of neighbouring rows as units, in two panels of 16 columns; `columns` may be read, those beyond are 0. A last
// row without a neighbour is paired with 0.
inline void pack_column_pairs(float* first, float* second, const BFloat16* source, int64_t stride, int64_t rows,
                              int64_t columns) {
  for (int64_t row = 0; row < rows; row += 2, first += kTileSide, second += kTileSide) {
    const BFloat16* line = source + row * stride;
    const BFloat16* next = row + 1 < rows ? line + stride : nullptr;
    if (columns >= kTileSpan) {
      store(first, BFloat16Pairs::down(line, next));
      store(second, BFloat16Pairs::down(line + kTileSide, next ? next + kTileSide : nullptr));
      continue;
    }
    const int64_t here = columns < kTileSide ? columns : kTileSide, rest = columns - here;
    store(first, BFloat16Pairs::down_part(line, next, here));
    store(second, BFloat16Pairs::down_part(line + here, next ? next + here : nullptr, rest));
  }
}

// The pairs of two rows of 32 numbers.
DYNABERT_INLINE void store_column_pairs(float* units, __m512i row, __m512i next) {
  store(units, bit_cast<Float>(_mm512_unpacklo_epi16(row, next)));
  store(units + kTileSide, bit_cast<Float>(_mm512_unpackhi_epi16(row, next)));
}

// The number of a row that column i of a panel holds.
constexpr int64_t number_in_column(int64_t i) { return i % kTileSide / 4 * 8 + i / kTileSide * 4 + i % 4; }

// The sums of a panel's columns in the order of the numbers.
DYNABERT_INLINE void in_order(Float& first, Float& second) {
  const __m512i a = bit_cast<__m512i>(first), b = bit_cast<__m512i>(second);
  first = bit_cast<Float>(_mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b));
  second = bit_cast<Float>(_mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b));
}

// panels[(c / 32 * capacity + pair) * 32 + column]: `rows` rows of `columns` numbers, with zeros for rows up to the
// next multiple of 32 and for columns of the last panel.
inline void pair_columns(float* panels, int64_t capacity, const BFloat16* source, int64_t stride, int64_t rows,
                         int64_t columns) {
  for (int64_t c = 0; c < columns; c += kTileSpan, panels += capacity * kTileSpan) {
    const int64_t here = columns - c < kTileSpan ? columns - c : kTileSpan;
    const __mmask32 used = static_cast<__mmask32>((uint64_t{1} << here) - 1);
    const BFloat16* line = source + c;
    float* out = panels;
    int64_t row = 0;
    for (; row + 1 < rows; row += 2, line += 2 * stride, out += kTileSpan) {
      store_column_pairs(out, _mm512_maskz_loadu_epi16(used, line), _mm512_maskz_loadu_epi16(used, line + stride));
    }
    if (row < rows) {
      store_column_pairs(out, _mm512_maskz_loadu_epi16(used, line), _mm512_setzero_si512());
      out += kTileSpan;
    }
    clear_units(out, round_up(rows, kTileNumbers) / 2 - (rows + 1) / 2);
  }
}

// Two registers of sums in order, times `scale`, as up to 32 bfloat16.
DYNABERT_INLINE void store_sums(NativeBFloat16* out, const float* sums, Float scale, int64_t columns) {
  Float first = load(sums), second = load(sums + kTileSide);
  in_order(first, second);
  const Int bits = to_native_bfloat16(first * scale, second * scale);
  if (columns >= kTileSpan) {
    __builtin_memcpy(out, &bits, sizeof bits);
  } else {
    _mm512_mask_storeu_epi16(out, static_cast<__mmask32>((uint64_t{1} << columns) - 1), (__m512i)bits);
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
