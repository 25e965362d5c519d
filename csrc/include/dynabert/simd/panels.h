// What a product of two activations multiplies: numbers of any element type, or pairs of bfloat16. Compiled once for
// each instruction set: no include guard.
//
// A unit is what one lane holds: a number, or two neighbours along the sum. `turn` makes units of neighbours in a row,
// `copy_columns` of rows that follow each other.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

template <class T>
struct NumberProducts {
  using Element = T;
  using Scalar = Wide<T>;
  using Multiply = MultiplyNumbers<Scalar>;
  static constexpr int64_t kPerUnit = 1;
  // panel[unit * width + row], see pack_rows.
  static DYNABERT_INLINE void turn(Scalar* panel, int64_t width, const T* source, int64_t stride, int64_t rows,
                                   int64_t length) {
    pack_numbers<T>(panel, width, source, stride, rows, length);
  }
  // Column `column` and the lanes after it of the unit that starts at `row`.
  static DYNABERT_INLINE Vector<Scalar> unit(const T* row, int64_t stride, int64_t rows) { return load(row); }
  static DYNABERT_INLINE Vector<Scalar> unit_part(const T* row, int64_t stride, int64_t rows, int columns) {
    return load_part(row, columns);
  }
};

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// A last row without a neighbour is paired with 0. The dot product takes subnormal numbers as 0.
struct PairProducts {
  using Element = NativeBFloat16;
  using Scalar = float;
  using Multiply = MultiplyBFloat16Pairs;
  static constexpr int64_t kPerUnit = 2;
  static DYNABERT_INLINE void turn(float* panel, int64_t width, const Element* source, int64_t stride, int64_t rows,
                                   int64_t length) {
    pack_rows<BFloat16Pairs>(panel, width, source, stride, rows, length);
  }
  static DYNABERT_INLINE Float pair(UShort first, UShort second) {
    return bit_cast<Float>(__builtin_convertvector(first, UInt) | (__builtin_convertvector(second, UInt) << 16));
  }
  static DYNABERT_INLINE Float unit(const Element* row, int64_t stride, int64_t rows) {
    return pair(load_bits(row), rows > 1 ? load_bits(row + stride) : UShort{});
  }
  static DYNABERT_INLINE Float unit_part(const Element* row, int64_t stride, int64_t rows, int columns) {
    return pair(load_bits_part(row, columns), rows > 1 ? load_bits_part(row + stride, columns) : UShort{});
  }
};
#endif

template <class Products>
DYNABERT_INLINE int64_t units_in(int64_t length) {
  return (length + Products::kPerUnit - 1) / Products::kPerUnit;
}

// Rows as units in panels of `width` columns: unit u of column c at panels[(c / width * capacity + u) * width + c %
// width]. Columns from `columns` up to the last panel's end read as 0.
template <class Products>
void copy_columns(typename Products::Scalar* panels, int64_t width, int64_t capacity,
                  const typename Products::Element* source, int64_t stride, int64_t rows, int64_t columns) {
  using S = typename Products::Scalar;
  constexpr int64_t kLane = kLanes<S>;
  const int64_t padded = (columns + width - 1) / width * width, units = units_in<Products>(rows);
  for (int64_t c = 0; c < padded; c += kLane) {
    const int64_t left = columns - c;
    S* out = panels + c / width * width * capacity + c % width;
    const typename Products::Element* from = source + c;
    for (int64_t u = 0; u < units; ++u) {
      const int64_t row = u * Products::kPerUnit;
      store(out + u * width, left >= kLane ? Products::unit(from + row * stride, stride, rows - row)
                             : left > 0
                                 ? Products::unit_part(from + row * stride, stride, rows - row, static_cast<int>(left))
                                 : Vector<S>{});
    }
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
