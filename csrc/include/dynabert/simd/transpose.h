// Rows turned into columns: `panel[u * width + r]` = unit u of row r. Compiled once for each instruction set, no guard.
//
// A unit is 32 bits: a float, or two neighbouring bfloat16 for the dot product instruction. Only the AVX paths have it.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// Turns a 16 x 16 square of 32-bit units in registers.
DYNABERT_INLINE void transpose_square(Float* v) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps((__m512)v[2 * i], (__m512)v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps((__m512)v[2 * i], (__m512)v[2 * i + 1]);
  }
  __m512d u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[4 * i] = _mm512_unpacklo_pd((__m512d)t[4 * i], (__m512d)t[4 * i + 2]);
    u[4 * i + 1] = _mm512_unpackhi_pd((__m512d)t[4 * i], (__m512d)t[4 * i + 2]);
    u[4 * i + 2] = _mm512_unpacklo_pd((__m512d)t[4 * i + 1], (__m512d)t[4 * i + 3]);
    u[4 * i + 3] = _mm512_unpackhi_pd((__m512d)t[4 * i + 1], (__m512d)t[4 * i + 3]);
  }
  // Each 128-bit lane now holds 4 rows of 4 units: the lanes themselves are turned as a 4 x 4 square.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = (__m512)u[i], b = (__m512)u[4 + i], c = (__m512)u[8 + i], d = (__m512)u[12 + i];
    const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x88), ab_high = _mm512_shuffle_f32x4(a, b, 0xdd);
    const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x88), cd_high = _mm512_shuffle_f32x4(c, d, 0xdd);
    v[i] = (Float)_mm512_shuffle_f32x4(ab_low, cd_low, 0x88);
    v[4 + i] = (Float)_mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
    v[8 + i] = (Float)_mm512_shuffle_f32x4(ab_low, cd_low, 0xdd);
    v[12 + i] = (Float)_mm512_shuffle_f32x4(ab_high, cd_high, 0xdd);
  }
}
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
// Turns an 8 x 8 square of 32-bit units in registers.
DYNABERT_INLINE void transpose_square(Float* v) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
  }
  __m256d u[8];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_unpacklo_pd((__m256d)t[4 * i], (__m256d)t[4 * i + 2]);
    u[4 * i + 1] = _mm256_unpackhi_pd((__m256d)t[4 * i], (__m256d)t[4 * i + 2]);
    u[4 * i + 2] = _mm256_unpacklo_pd((__m256d)t[4 * i + 1], (__m256d)t[4 * i + 3]);
    u[4 * i + 3] = _mm256_unpackhi_pd((__m256d)t[4 * i + 1], (__m256d)t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = (Float)_mm256_permute2f128_ps((__m256)u[i], (__m256)u[4 + i], 0x20);
    v[4 + i] = (Float)_mm256_permute2f128_ps((__m256)u[i], (__m256)u[4 + i], 0x31);
  }
}
#else
DYNABERT_INLINE void transpose_square(Float* v) {
  for (int i = 0; i < kLanes<float>; ++i) {
    for (int j = 0; j < i; ++j) {
      const float other = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = other;
    }
  }
}
#endif

// How a row is read in units of 32 bits: along the row, or down the columns, which pairs a row with the next one (null:
// with 0).
template <class T>
struct FloatUnits {  // numbers become floats
  using Element = T;
  static constexpr int64_t kPerUnit = 1;
  static DYNABERT_INLINE Float read(const T* row, int64_t unit) { return load(row + unit); }
  static DYNABERT_INLINE Float read_part(const T* row, int64_t unit, int64_t length) {
    return load_part(row + unit, static_cast<int>(length - unit));
  }
  static DYNABERT_INLINE Float down(const T* row, const T*) { return load(row); }
  static DYNABERT_INLINE Float down_part(const T* row, const T*, int64_t columns) {
    return load_part(row, static_cast<int>(columns));
  }
};
struct BFloat16Pairs {  // two neighbours as they are; a last one without a neighbour is paired with 0
  using Element = BFloat16;
  static constexpr int64_t kPerUnit = 2;
  static DYNABERT_INLINE Float read(const BFloat16* row, int64_t unit) {
    return load(reinterpret_cast<const float*>(row + 2 * unit));
  }
  static DYNABERT_INLINE Float read_part(const BFloat16* row, int64_t unit, int64_t length) {
    Float v = {};
    __builtin_memcpy(&v, row + 2 * unit, static_cast<size_t>(length - 2 * unit) * sizeof(BFloat16));
    return v;
  }
  static DYNABERT_INLINE Float pair(UShort first, UShort second) {
    return bit_cast<Float>(widen(first) | (widen(second) << 16));
  }
  static DYNABERT_INLINE Float down(const BFloat16* row, const BFloat16* next) {
    return pair(load_bits(row), next ? load_bits(next) : UShort{});
  }
  static DYNABERT_INLINE Float down_part(const BFloat16* row, const BFloat16* next, int64_t columns) {
    const int n = static_cast<int>(columns);
    return pair(load_bits_part(row, n), next ? load_bits_part(next, n) : UShort{});
  }
};

template <class Units>
DYNABERT_INLINE int64_t units_of(int64_t length) {
  return (length + Units::kPerUnit - 1) / Units::kPerUnit;
}

// Turns `rows` rows of `length` numbers into panel[unit * width + row], rows <= width. Rows from `rows` up to the next
// multiple of a register read as 0 where the width has room for them. The width is a multiple of a register, or smaller
// than one; then up to one register past the last unit is written.
template <class Units>
void pack_rows(float* panel, int64_t width, const typename Units::Element* source, int64_t stride, int64_t rows,
               int64_t length) {
  constexpr int kSide = kLanes<float>;
  const int64_t units = units_of<Units>(length);
  const int64_t whole = length / Units::kPerUnit / kSide * kSide;
  for (int64_t unit = 0; unit < units; unit += kSide) {
    const int64_t here = units - unit < kSide ? units - unit : kSide;
    for (int64_t row = 0; row < width; row += kSide) {
      Float square[kSide];
      if (unit < whole && row + kSide <= rows) {
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i) square[i] = Units::read(source + (row + i) * stride, unit);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i) {
          const typename Units::Element* line = source + (row + i) * stride;
          square[i] = row + i >= rows ? Float{}
                      : unit < whole  ? Units::read(line, unit)
                                      : Units::read_part(line, unit, length);
        }
      }
      transpose_square(square);
      float* out = panel + unit * width + row;
      if (here == kSide) {
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i) store(out + i * width, square[i]);
      } else {
        for (int i = 0; i < here; ++i) store(out + i * width, square[i]);
      }
    }
  }
}

// The units of each column as they lie: panel[unit * width + column] = unit of rows `kPerUnit * unit` and on, for width
// columns; `columns` may be read, those beyond are 0. Up to one register past the last unit is written.
template <class Units>
DYNABERT_INLINE void pack_columns(float* panel, int64_t width, const typename Units::Element* source, int64_t stride,
                                  int64_t rows, int64_t columns) {
  constexpr int kSide = kLanes<float>;
  for (int64_t row = 0; row < rows; row += Units::kPerUnit, panel += width) {
    const typename Units::Element* line = source + row * stride;
    const typename Units::Element* next = row + 1 < rows ? line + stride : nullptr;
    for (int64_t j = 0; j < width; j += kSide) {
      const typename Units::Element* below = next ? next + j : nullptr;
      store(panel + j, j + kSide <= columns ? Units::down(line + j, below)
                       : j < columns        ? Units::down_part(line + j, below, columns - j)
                                            : Float{});
    }
  }
}

// The same for float64, number by number: speed is not what float64 is for.
inline void pack_doubles(double* panel, int64_t width, const double* source, int64_t stride, int64_t rows,
                         int64_t length) {
  for (int64_t u = 0; u < length; ++u) {
    for (int64_t row = 0; row < width; ++row) panel[u * width + row] = row < rows ? source[row * stride + u] : 0.0;
  }
}

// Rows of any element type as numbers of the wide type.
template <class T>
DYNABERT_INLINE void pack_numbers(Wide<T>* panel, int64_t width, const T* source, int64_t stride, int64_t rows,
                                  int64_t length) {
  if constexpr (sizeof(T) == sizeof(double)) {
    pack_doubles(panel, width, source, stride, rows, length);
  } else {
    pack_rows<FloatUnits<T>>(panel, width, source, stride, rows, length);
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
