// The register tile of every product: up to kStrip rows times one or two registers of columns, summed over units.
// Compiled once for each instruction set: no include guard.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
constexpr int kStrip = 14;  // 28 sums, 2 registers of the panel, 1 broadcast: 31 of 32 registers
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
constexpr int kStrip = 6;  // 12 sums, 2 and 1: 15 of 16 registers
#else
constexpr int kStrip = 4;  // pack_rows takes strips of at most one register
#endif

// How a broadcast unit of a row multiplies a register of units of the panel.
template <class S>
struct MultiplyNumbers {
  using Scalar = S;
  static DYNABERT_INLINE Vector<S> add(Vector<S> a, Vector<S> b, Vector<S> sum) { return fma(a, b, sum); }
};
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
struct MultiplyBFloat16Pairs {
  using Scalar = float;
  static DYNABERT_INLINE Float add(Float a, Float b, Float sum) { return dot_bfloat16(sum, a, b); }
};
#endif

// out[row * out_stride + column] = sum over u of row_unit(row, u) * panel[u * width + column], width = kRegisters
// registers. kRowStride 0: unit u of row i lies at strip[u * kUnitStride + i], where a kUnitStride of 0 stands for the
// number of rows, a packed strip; else at strip[i * kRowStride + u]. kAdd: the sums start from what out holds.
template <class Multiply, int kRows, int kRegisters, int kRowStride, bool kAdd, int kUnitStride>
void multiply_tile(const typename Multiply::Scalar* strip, const typename Multiply::Scalar* panel, int64_t units,
                   typename Multiply::Scalar* out, int64_t out_stride) {
  using S = typename Multiply::Scalar;
  constexpr int kLane = kLanes<S>;
  Vector<S> total[kRows][kRegisters];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) total[i][r] = kAdd ? load(out + i * out_stride + r * kLane) : Vector<S>{};
  }
  for (int64_t u = 0; u < units; ++u) {
    Vector<S> columns[kRegisters];
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) columns[r] = load(panel + r * kLane);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vector<S> x = broadcast(strip[kRowStride == 0 ? i : i * kRowStride]);
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) total[i][r] = Multiply::add(x, columns[r], total[i][r]);
    }
    strip += kRowStride != 0 ? 1 : kUnitStride != 0 ? kUnitStride : kRows;
    panel += kRegisters * kLane;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) store(out + i * out_stride + r * kLane, total[i][r]);
  }
}

// The same for a number of rows known at run time, 1 to kStrip.
template <class Multiply, int kRegisters, int kRowStride = 0, bool kAdd = false, int kUnitStride = 0>
void multiply(int64_t rows, const typename Multiply::Scalar* strip, const typename Multiply::Scalar* panel,
              int64_t units, typename Multiply::Scalar* out, int64_t out_stride) {
  switch (rows) {
#define DYNABERT_ROWS(n) \
  case n:                \
    return multiply_tile<Multiply, n, kRegisters, kRowStride, kAdd, kUnitStride>(strip, panel, units, out, out_stride);
    DYNABERT_ROWS(1)
    DYNABERT_ROWS(2)
    DYNABERT_ROWS(3)
    DYNABERT_ROWS(4)
#if DYNABERT_ISA != DYNABERT_ISA_GENERIC
    DYNABERT_ROWS(5)
    DYNABERT_ROWS(6)
#endif
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
    DYNABERT_ROWS(7)
    DYNABERT_ROWS(8)
    DYNABERT_ROWS(9)
    DYNABERT_ROWS(10)
    DYNABERT_ROWS(11)
    DYNABERT_ROWS(12)
    DYNABERT_ROWS(13)
    DYNABERT_ROWS(14)
#endif
#undef DYNABERT_ROWS
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
