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
  using Units = FloatUnits<T>;  // not for float64
  using Scalar = Wide<T>;
  using Multiply = MultiplyNumbers<Scalar>;
  static constexpr int64_t kPerUnit = 1;
};

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// For callers that have asked use_bfloat16_dot(). A last one without a neighbour is paired with 0.
struct PairProducts {
  using Element = NativeBFloat16;
  using Units = BFloat16Pairs;
  using Scalar = float;
  using Multiply = MultiplyBFloat16Pairs;
  static constexpr int64_t kPerUnit = 2;
};
#endif

template <class Products>
DYNABERT_INLINE int64_t units_in(int64_t length) {
  return (length + Products::kPerUnit - 1) / Products::kPerUnit;
}

// panel[unit * width + row], see pack_rows.
template <class Products>
DYNABERT_INLINE void turn(typename Products::Scalar* panel, int64_t width, const typename Products::Element* source,
                          int64_t stride, int64_t rows, int64_t length) {
  if constexpr (sizeof(typename Products::Scalar) == sizeof(double)) {
    pack_doubles(panel, width, source, stride, rows, length);
  } else {
    pack_rows<typename Products::Units>(panel, width, source, stride, rows, length);
  }
}

// Rows as units in panels of `width` columns: unit u of column c at panels[(c / width * capacity + u) * width + c %
// width]. Columns from `columns` up to the last panel's end read as 0.
template <class Products>
void copy_columns(typename Products::Scalar* panels, int64_t width, int64_t capacity,
                  const typename Products::Element* source, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; c += width, panels += capacity * width) {
    if constexpr (sizeof(typename Products::Scalar) == sizeof(double)) {
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < width; ++j) {
          panels[row * width + j] = c + j < columns ? source[row * stride + c + j] : 0.0;
        }
      }
    } else {
      pack_columns<typename Products::Units>(panels, width, source + c, stride, rows, columns - c);
    }
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
