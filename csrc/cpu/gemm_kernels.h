// Matrix products over row spans. Compiled once for each instruction set: no include guard.
//
// A task is a block of rows times one panel of outputs (two registers wide). The panel of weights is turned once into
// [k][panel] in the thread's scratch memory, the rows once for each block into strips of [k][rows of a strip]; then a
// strip times a panel is a register tile that sums over k with one load of two registers and one broadcast per row.
// Every output is summed over k in one fixed order: it depends neither on the cut into tasks nor on the number of
// threads. Reads a panel's weights once per block of rows, 2 n k operations per row.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/math.h"
#include "dynabert/simd/tile.h"
#include "dynabert/simd/transpose.h"

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr int64_t kPanel = 2 * kLanes<float>;

#if DYNABERT_ISA != DYNABERT_ISA_GENERIC

// Rows of sums to bias, activation, residual and the element type. `width` columns from `column` on.
template <class T>
void finish_strip(const SpanGemm& g, int64_t first, int64_t rows, int64_t column, int64_t width, const float* sums) {
  constexpr int kLane = kLanes<float>;
  for (int64_t j = 0; j < width; j += kLane) {
    const int here = width - j < kLane ? static_cast<int>(width - j) : kLane;
    const T* residual =
        g.residual ? static_cast<const T*>(g.residual) + first * g.residual_stride + column + j : nullptr;
    T* pre = g.pre ? static_cast<T*>(g.pre) + first * g.pre_stride + column + j : nullptr;
    T* c = static_cast<T*>(g.c) + first * g.c_stride + column + j;
    Float bias = {};
    if (g.bias) bias = load_part(static_cast<const T*>(g.bias) + column + j, here);
    for (int64_t i = 0; i < rows; ++i) {
      Float v = load(sums + i * kPanel + j) + bias;
      if (here == kLane) {
        if (pre) store(pre + i * g.pre_stride, v);
        v = activate(v, g.activation);
        if (residual) v = v + load(residual + i * g.residual_stride);
        store(c + i * g.c_stride, v);
      } else {
        if (pre) store_part(pre + i * g.pre_stride, v, here);
        v = activate(v, g.activation);
        if (residual) v = v + load_part(residual + i * g.residual_stride, here);
        store_part(c + i * g.c_stride, v, here);
      }
    }
  }
}

struct Strip {
  int64_t row, rows, n, k;
  const float* packed;
};

// The strips of rows first to last - 1, packed into this thread's scratch memory; returns how many.
template <class Units>
int64_t pack_strips(const SpanGemm& g, int64_t first, int64_t last, const Strip** strips_out) {
  using Element = typename Units::Element;
  int64_t count = 0, floats = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    if (begin >= end) continue;
    count += (end - begin + kStrip - 1) / kStrip;
    floats += (end - begin) * units_of<Units>(span.k);
  }
  Strip* strips = scratch_of<Strip>(kScratchC, static_cast<size_t>(count));
  float* packed = scratch_of<float>(kScratchA, static_cast<size_t>(floats + kLanes<float>));
  int64_t at = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    if (begin >= end) continue;
    // Strips of nearly equal height: 128 rows are 8 of 13 and 2 of 12, not 9 of 14 and one of 2.
    const int64_t pieces = (end - begin + kStrip - 1) / kStrip;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t row = begin + (end - begin) * piece / pieces;
      const int64_t rows = begin + (end - begin) * (piece + 1) / pieces - row;
      pack_rows<Units>(packed, rows, static_cast<const Element*>(g.a) + row * g.a_stride, g.a_stride, rows, span.k);
      strips[at++] = {row, rows, span.n, span.k, packed};
      packed += rows * units_of<Units>(span.k);
    }
  }
  *strips_out = strips;
  return count;
}

// A strip times a panel. Long sums are cut into blocks that are added at the end: rounding then grows with the length
// of a block and the number of blocks, not with the whole k. One chain over 3072 numbers is twice as far off as
// PyTorch.
template <class Multiply>
void sum_in_blocks(int64_t rows, const float* strip, const float* panel, int64_t units, float* sums) {
  constexpr int64_t kBlock = 256;
  alignas(64) float part[kStrip * kPanel];
  multiply<Multiply, 2>(rows, strip, panel, units < kBlock ? units : kBlock, sums, kPanel);
  for (int64_t u = kBlock; u < units; u += kBlock) {
    const int64_t here = units - u < kBlock ? units - u : kBlock;
    multiply<Multiply, 2>(rows, strip + u * rows, panel + u * kPanel, here, part, kPanel);
    for (int64_t j = 0; j < rows * kPanel; j += kLanes<float>) store(sums + j, load(sums + j) + load(part + j));
  }
}

// Asks for a slice of the next panel's weights while the current one is multiplied: turning them would wait for memory.
template <class T>
DYNABERT_INLINE void prefetch_rows(const T* weights, int64_t stride, int64_t rows, int64_t length, int64_t slice,
                                   int64_t slices) {
  const int64_t last = rows * (slice + 1) / slices;
  for (int64_t row = rows * slice / slices; row < last; ++row) {
    const char* line = reinterpret_cast<const char*>(weights + row * stride);
    for (int64_t byte = 0; byte < length * static_cast<int64_t>(sizeof(T)); byte += 64) {
      __builtin_prefetch(line + byte, 0, 2);
    }
  }
}

template <class T, class Units, class Multiply>
void run_tasks(const SpanGemm& g, int64_t begin, int64_t end) {
  const T* weights = static_cast<const T*>(g.b);
  const Strip* strips = nullptr;
  alignas(64) float sums[kStrip * kPanel];
  int64_t count = 0, packed_block = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / g.panels, column = task % g.panels * kPanel;
    if (block != packed_block) {
      const int64_t first = g.first_row + block * g.row_block;
      count = pack_strips<Units>(g, first, first + g.row_block, &strips);
      packed_block = block;
    }
    int64_t n = 0, k = 0;  // the most that any strip needs of this panel
    for (int64_t s = 0; s < count; ++s) {
      if (strips[s].n <= column) continue;
      n = strips[s].n > n ? strips[s].n : n;
      k = strips[s].k > k ? strips[s].k : k;
    }
    if (n == 0) continue;
    const int64_t columns = n - column < kPanel ? n - column : kPanel;
    const int64_t units = units_of<Units>(k);
    float* panel = scratch_of<float>(kScratchB, static_cast<size_t>(units * kPanel));
    pack_rows<Units>(panel, kPanel, weights + column * g.b_stride, g.b_stride, columns, k);
    const int64_t next = column + kPanel;
    const int64_t next_columns = task + 1 < end && next < n ? (n - next < kPanel ? n - next : kPanel) : 0;
    for (int64_t s = 0; s < count; ++s) {
      const Strip& strip = strips[s];
      prefetch_rows(weights + next * g.b_stride, g.b_stride, next_columns, k, s, count);
      if (strip.n <= column) continue;
      sum_in_blocks<Multiply>(strip.rows, strip.packed, panel, units_of<Units>(strip.k), sums);
      finish_strip<T>(g, strip.row, strip.rows, column, strip.n - column < kPanel ? strip.n - column : kPanel, sums);
    }
  }
}

// An odd k ends in a pair of one number and 0. Next to a span with a larger k the panel's pair holds a weight that the
// narrow span does not use, and 0 times an infinite weight would be NaN.
[[maybe_unused]] bool pairs_fit(const SpanGemm& g) {
  for (int64_t s = 0; s < g.num_spans; ++s) {
    if (g.spans[s].k % 2 != 0 && g.spans[s].k != g.spans[0].k) return false;
    if (g.spans[s].k != g.spans[0].k && g.spans[0].k % 2 != 0) return false;
  }
  return true;
}

void gemm(const SpanGemm& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32:
      return run_tasks<float, FloatUnits<float>, MultiplyNumbers<float>>(g, begin, end);
    case DType::kFloat16:
      return run_tasks<Half, FloatUnits<Half>, MultiplyNumbers<float>>(g, begin, end);
    case DType::kBFloat16:
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
      if (use_bfloat16_dot() && pairs_fit(g))
        return run_tasks<NativeBFloat16, BFloat16Pairs, MultiplyBFloat16Pairs>(g, begin, end);
#endif
      return run_tasks<BFloat16, FloatUnits<BFloat16>, MultiplyNumbers<float>>(g, begin, end);
    default:
      return;
  }
}

#else
void gemm(const SpanGemm&, int64_t, int64_t) {}
#endif

template <class T>
void epilogue_rows(const RowEpilogue& e, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* c = static_cast<T*>(e.c) + row * e.c_stride;
    const T* residual = e.residual ? static_cast<const T*>(e.residual) + row * e.residual_stride : nullptr;
    T* pre = e.pre ? static_cast<T*>(e.pre) + row * e.pre_stride : nullptr;
    const T* bias = static_cast<const T*>(e.bias);
    using S = Wide<T>;
    constexpr int64_t kStep = kLanes<S>;
    for (int64_t j = 0; j < e.columns; j += kStep) {
      const int here = e.columns - j < kStep ? static_cast<int>(e.columns - j) : static_cast<int>(kStep);
      const bool whole = here == kStep;
      Vector<S> v = whole ? load(c + j) : load_part(c + j, here);
      if (bias) v = v + (whole ? load(bias + j) : load_part(bias + j, here));
      if (pre) whole ? store(pre + j, v) : store_part(pre + j, v, here);
      v = activate(v, e.activation);
      if (residual) v = v + (whole ? load(residual + j) : load_part(residual + j, here));
      whole ? store(c + j, v) : store_part(c + j, v, here);
    }
  }
}

void epilogue(const RowEpilogue& e, int64_t begin, int64_t end) {
  switch (e.dtype) {
    case DType::kFloat32:
      return epilogue_rows<float>(e, begin, end);
    case DType::kBFloat16:
      return epilogue_rows<BFloat16>(e, begin, end);
    case DType::kFloat16:
      return epilogue_rows<Half>(e, begin, end);
    case DType::kFloat64:
      return epilogue_rows<double>(e, begin, end);
  }
}

template <class T>
void gradient_rows(const RowGradient& g, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  for (int64_t row = begin; row < end; ++row) {
    const T* gradient = static_cast<const T*>(g.gradient) + row * g.gradient_stride;
    const T* pre = g.pre ? static_cast<const T*>(g.pre) + row * g.pre_stride : nullptr;
    const T* added = g.added ? static_cast<const T*>(g.added) + row * g.added_stride : nullptr;
    T* activated = g.activated ? static_cast<T*>(g.activated) + row * g.activated_stride : nullptr;
    T* c = static_cast<T*>(g.c) + row * g.c_stride;
    for (int64_t j = 0; j < g.columns; j += kStep) {
      const int here = g.columns - j < kStep ? static_cast<int>(g.columns - j) : static_cast<int>(kStep);
      const bool whole = here == kStep;
      Vector<S> v = whole ? load(gradient + j) : load_part(gradient + j, here);
      if (pre) {
        const ValueAndSlope<Vector<S>> act =
            activate_with_slope(whole ? load(pre + j) : load_part(pre + j, here), g.activation);
        v = v * act.slope;
        if (activated) whole ? store(activated + j, act.value) : store_part(activated + j, act.value, here);
      }
      if (added) v = v + (whole ? load(added + j) : load_part(added + j, here));
      whole ? store(c + j, v) : store_part(c + j, v, here);
    }
  }
}

void gradient(const RowGradient& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32:
      return gradient_rows<float>(g, begin, end);
    case DType::kBFloat16:
      return gradient_rows<BFloat16>(g, begin, end);
    case DType::kFloat16:
      return gradient_rows<Half>(g, begin, end);
    case DType::kFloat64:
      return gradient_rows<double>(g, begin, end);
  }
}

// One register of columns at a time, in blocks of rows that are added at the end: see sum_in_blocks.
template <class T>
void sum_columns(const ColumnSums& g, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>, kBlock = 64;
  for (int64_t j = begin; j < end; j += kStep) {
    const int here = end - j < kStep ? static_cast<int>(end - j) : static_cast<int>(kStep);
    Vector<S> total = {};
    for (int64_t s = 0; s < g.num_spans; ++s) {
      const GemmSpan& span = g.spans[s];
      if (span.n <= j) continue;
      const int reached = span.n - j < here ? static_cast<int>(span.n - j) : here;
      for (int64_t block = span.begin; block < span.end; block += kBlock) {
        const int64_t last = span.end - block < kBlock ? span.end : block + kBlock;
        Vector<S> part = {};
        const T* a = static_cast<const T*>(g.a) + block * g.a_stride + j;
        if (reached == kStep) {
          for (int64_t row = block; row < last; ++row, a += g.a_stride) part += load(a);
        } else {
          for (int64_t row = block; row < last; ++row, a += g.a_stride) part += load_part(a, reached);
        }
        total += part;
      }
    }
    store_part(static_cast<T*>(g.out) + j, total, here);
  }
}

void column_sums(const ColumnSums& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32:
      return sum_columns<float>(g, begin, end);
    case DType::kBFloat16:
      return sum_columns<BFloat16>(g, begin, end);
    case DType::kFloat16:
      return sum_columns<Half>(g, begin, end);
    case DType::kFloat64:
      return sum_columns<double>(g, begin, end);
  }
}

}  // namespace

constexpr GemmKernels kGemm = {gemm, epilogue, gradient, column_sums, kPanel};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
