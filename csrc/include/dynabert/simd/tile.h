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

// Memory that will be needed soon: `rows` rows of `lines` cache lines each, asked for one line at a time while a
// product runs. In one burst they would fill the queue of misses, and the product would wait behind them.
struct Ahead {
  const char* at;
  int64_t left, lines, jump, rows;  // lines left of this row; from its end to the next row

  template <class T>
  static DYNABERT_INLINE Ahead of(const T* first, int64_t stride, int64_t rows, int64_t columns) {
    const char* at = reinterpret_cast<const char*>(first);
    const int64_t bytes = columns * static_cast<int64_t>(sizeof(T));
    const int64_t lines = (reinterpret_cast<intptr_t>(at) % 64 + bytes + 63) / 64;
    return {at, lines, lines, stride * static_cast<int64_t>(sizeof(T)) - lines * 64, columns > 0 ? rows : 0};
  }
  DYNABERT_INLINE void ask() {
    if (rows == 0) return;
    __builtin_prefetch(at, 0, 2);
    at += 64;
    if (--left == 0) {
      at += jump;
      left = lines;
      --rows;
    }
  }
};
struct NothingAhead {
  DYNABERT_INLINE void ask() {}
};

// out[row * out_stride + column] = sum over u of row_unit(row, u) * panel[u * width + column], width = kRegisters
// registers. kRowStride 0: unit u of row i lies at strip[u * kUnitStride + i], where a kUnitStride of 0 stands for the
// number of rows, a packed strip; else at strip[i * kRowStride + u]. kAdd: the sums start from what out holds. kFold:
// they start from 0 and out is added at the end.
template <class Multiply, int kRows, int kRegisters, int kRowStride, bool kAdd, bool kFold, int kUnitStride, class Next>
void multiply_tile(const typename Multiply::Scalar* strip, const typename Multiply::Scalar* panel, int64_t units,
                   typename Multiply::Scalar* out, int64_t out_stride, Next& next) {
  using S = typename Multiply::Scalar;
  constexpr int kLane = kLanes<S>;
  Vector<S> total[kRows][kRegisters];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) total[i][r] = kAdd ? load(out + i * out_stride + r * kLane) : Vector<S>{};
  }
  Next ahead = next;
  for (int64_t u = 0; u < units; ++u) {
    ahead.ask();
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
  next = ahead;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) {
      typename Multiply::Scalar* at = out + i * out_stride + r * kLane;
      store(at, kFold ? load(at) + total[i][r] : total[i][r]);
    }
  }
}

// The same for a number of rows known at run time, 1 to kStrip.
template <class Multiply, int kRegisters, int kRowStride = 0, bool kAdd = false, bool kFold = false,
          int kUnitStride = 0, class Next = NothingAhead>
void multiply(int64_t rows, const typename Multiply::Scalar* strip, const typename Multiply::Scalar* panel,
              int64_t units, typename Multiply::Scalar* out, int64_t out_stride, Next&& next = {}) {
  switch (rows) {
#define DYNABERT_ROWS(n)                                                                                          \
  case n:                                                                                                         \
    return multiply_tile<Multiply, n, kRegisters, kRowStride, kAdd, kFold, kUnitStride>(strip, panel, units, out, \
                                                                                        out_stride, next);
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

// Asks for the lines of a tile that will be read, or written, after the next product.
template <class T>
DYNABERT_INLINE void ask_to_read(const T* first, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row, first += stride) {
    for (int64_t j = 0; j < columns; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(first + j, 0, 3);
  }
}
template <class T>
DYNABERT_INLINE void ask_to_write(T* first, int64_t stride, int64_t rows, int64_t columns) {
#if DYNABERT_ISA != DYNABERT_ISA_GENERIC
  for (int64_t row = 0; row < rows; ++row, first += stride) {
    for (int64_t j = 0; j < columns; j += 64 / static_cast<int64_t>(sizeof(T))) {
      asm volatile("prefetchw %0" : : "m"(first[j]));
    }
  }
#endif
}

constexpr int64_t kPanel = 2 * kLanes<float>;  // columns of a panel
constexpr int64_t kSumBlock = 256;             // units

// A strip times a panel into rows of kPanel sums, or on top of what is there. Long sums are cut into blocks that are
// added at the end: rounding then grows with the length of a block and the number of blocks, not with the whole k. One
// chain over 3072 numbers is twice as far off as PyTorch.
template <class Multiply>
void sum_in_blocks(int64_t rows, const float* strip, const float* panel, int64_t units, float* sums, bool add,
                   Ahead& ahead) {
  for (int64_t u = 0; u < units; u += kSumBlock) {
    const int64_t here = units - u < kSumBlock ? units - u : kSumBlock;
    if (add || u > 0) {
      multiply<Multiply, 2, 0, false, true>(rows, strip + u * rows, panel + u * kPanel, here, sums, kPanel, ahead);
    } else {
      multiply<Multiply, 2, 0, false, false>(rows, strip, panel, here, sums, kPanel, ahead);
    }
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
