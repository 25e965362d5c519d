// Matrix products over row spans. Compiled once for each instruction set: no include guard.
//
// A task is a block of rows times one panel of outputs (two registers wide). The panel of weights is brought once into
// [k][panel] in the thread's scratch memory (turned, or for the gradient of the inputs as it lies; packed weights are
// in this order already, and with few rows that is most of the work saved), the rows once for each block into strips of
// [k][rows of a strip]; then a strip times a panel is a register tile that sums over k with one load of two registers
// and one broadcast per row. A long k is worked off in chunks, several panels at a time, so that the rows of a chunk
// stay in the second-level cache. Every output is summed over k in one fixed order: it depends neither on the cut into
// tasks nor on the number of threads. Reads a panel's weights once per block of rows, 2 n k operations per row.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/math.h"
#include "dynabert/simd/tile.h"
#include "dynabert/simd/transpose.h"
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
#include "dynabert/simd/tile_registers.h"
#include "dynabert/simd/column_pairs.h"
#endif

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

#if DYNABERT_ISA != DYNABERT_ISA_GENERIC

template <class T>
constexpr bool kShortActivation = false;
template <>
constexpr bool kShortActivation<BFloat16> = true;
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
template <>
constexpr bool kShortActivation<NativeBFloat16> = true;
#endif

// One register of each row's sums becomes one of c. kPart: its first `here` numbers; else all of it, and the compiler
// drops the masks. What the loop needs is read before it: a store of c might change the arguments, for all the compiler
// knows.
template <class T, bool kGradient, bool kPart>
DYNABERT_INLINE void finish_rows(const SpanGemm& g, int64_t first, int64_t rows, int64_t column, int here,
                                 const float* sums) {
  const auto read = [&](const T* from) { return kPart ? load_part(from, here) : load(from); };
  const auto write = [&](T* to, Float v) { kPart ? store_part(to, v, here) : store(to, v); };
  const Activation activation = g.activation;
  const int64_t residual_stride = g.residual_stride, c_stride = g.c_stride;
  const T* residual = g.residual ? static_cast<const T*>(g.residual) + first * residual_stride + column : nullptr;
  T* c = static_cast<T*>(g.c) + first * c_stride + column;
  if constexpr (kGradient) {
    const int64_t slope_stride = g.slope_stride, activated_stride = g.activated_stride;
    const T* slope_at = g.slope_at ? static_cast<const T*>(g.slope_at) + first * slope_stride + column : nullptr;
    T* activated = g.activated ? static_cast<T*>(g.activated) + first * activated_stride + column : nullptr;
    for (int64_t i = 0; i < rows; ++i) {
      Float v = load(sums + i * kPanel);
      if (slope_at) {
        const ValueAndSlope<Float> act = activate_with_slope<kShortActivation<T>>(read(slope_at), activation);
        v = v * act.slope;
        if (activated) write(activated, act.value);
        slope_at += slope_stride;
        activated = activated ? activated + activated_stride : nullptr;
      }
      if (residual) {
        v = v + read(residual);
        residual += residual_stride;
      }
      write(c, v);
      c += c_stride;
    }
  } else {
    const int64_t pre_stride = g.pre_stride;
    T* pre = g.pre ? static_cast<T*>(g.pre) + first * pre_stride + column : nullptr;
    const Float bias = g.bias ? read(static_cast<const T*>(g.bias) + column) : Float{};
    for (int64_t i = 0; i < rows; ++i) {
      Float v = load(sums + i * kPanel) + bias;
      if (pre) {
        write(pre, v);
        pre += pre_stride;
      }
      v = activate<kShortActivation<T>>(v, activation);
      if (residual) {
        v = v + read(residual);
        residual += residual_stride;
      }
      write(c, v);
      c += c_stride;
    }
  }
}

// Rows of sums to c. `width` columns from `column` on.
template <class T, bool kGradient>
void finish_strip(const SpanGemm& g, int64_t first, int64_t rows, int64_t column, int64_t width, const float* sums) {
  constexpr int kLane = kLanes<float>;
  for (int64_t j = 0; j < width; j += kLane) {
    if (width - j < kLane) {
      finish_rows<T, kGradient, true>(g, first, rows, column + j, static_cast<int>(width - j), sums + j);
    } else {
      finish_rows<T, kGradient, false>(g, first, rows, column + j, kLane, sums + j);
    }
  }
}

// Brings what finish_strip reads and writes nearer.
template <class T, bool kGradient>
void ask_for_tile(const SpanGemm& g, int64_t row, int64_t rows, int64_t column, int64_t width) {
  const auto place = [&](const void* base, int64_t stride) {
    return static_cast<const T*>(base) + row * stride + column;
  };
  if (kGradient && g.slope_at) ask_to_read(place(g.slope_at, g.slope_stride), g.slope_stride, rows, width);
  if (kGradient && g.activated) ask_to_write(place(g.activated, g.activated_stride), g.activated_stride, rows, width);
  if (!kGradient && g.pre) ask_to_write(place(g.pre, g.pre_stride), g.pre_stride, rows, width);
  if (g.residual && g.residual != g.c)
    ask_to_read(place(g.residual, g.residual_stride), g.residual_stride, rows, width);
  ask_to_write(place(g.c, g.c_stride), g.c_stride, rows, width);
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

constexpr int64_t kChunk = 512;              // units of k; a multiple of kSumBlock
constexpr int64_t kGroupFloats = 96 * 1024;  // sums of all panels of a group

// What a panel holds of a chunk: `columns` outputs from `column` on, `length` numbers of k from `start` on. Empty when
// no strip reaches it.
struct PanelPart {
  int64_t column, columns, start, length;
};

template <class Units>
PanelPart panel_part(const Strip* strips, int64_t count, int64_t panel, int64_t chunk) {
  constexpr int64_t kLength = kChunk * Units::kPerUnit;
  PanelPart part = {panel * kPanel, 0, chunk * kLength, 0};
  int64_t n = 0, k = 0;  // the most that any strip needs of this panel
  for (int64_t s = 0; s < count; ++s) {
    if (strips[s].n <= part.column) continue;
    n = strips[s].n > n ? strips[s].n : n;
    k = strips[s].k > k ? strips[s].k : k;
  }
  if (k <= part.start) return part;
  part.columns = n - part.column < kPanel ? n - part.column : kPanel;
  part.length = k - part.start < kLength ? k - part.start : kLength;
  return part;
}

// Where the chunk of a packed panel starts.
template <class Units>
DYNABERT_INLINE const float* packed_part(const SpanGemm& g, int64_t panel, int64_t chunk) {
  return static_cast<const float*>(g.b) + (panel * units_of<Units>(g.packed_inputs) + chunk * kChunk) * kPanel;
}

// A strip times a packed panel that goes on past the strip's odd k: its last pair holds a weight that the strip does
// not use, and 0 times an infinite weight would be NaN. So the last pair is multiplied by itself, with 0 in that place.
template <class Multiply>
void sum_odd(int64_t rows, const float* strip, const float* panel, int64_t units, float* sums, bool add, Ahead& ahead) {
  sum_in_blocks<Multiply>(rows, strip, panel, units - 1, sums, add, ahead);
  Int last[2];
  __builtin_memcpy(last, panel + (units - 1) * kPanel, sizeof last);
  for (Int& pairs : last) pairs &= 0xffff;
  float firsts[kPanel];
  __builtin_memcpy(firsts, last, sizeof last);
  if (add || units > 1) {
    multiply<Multiply, 2, 0, false, true>(rows, strip + (units - 1) * rows, firsts, 1, sums, kPanel);
  } else {
    multiply<Multiply, 2>(rows, strip, firsts, 1, sums, kPanel);
  }
}

template <class T, class Units, class Multiply, bool kGradient>
void run_panels(const SpanGemm& g, const Strip* strips, int64_t count, int64_t first_row, int64_t rows, int64_t begin,
                int64_t end) {
  const T* b = static_cast<const T*>(g.b);
  int64_t k = 0;
  for (int64_t s = 0; s < count; ++s) k = strips[s].k > k ? strips[s].k : k;
  const int64_t chunks = (units_of<Units>(k) + kChunk - 1) / kChunk;
  const int64_t fitting = chunks > 1 ? kGroupFloats / (rows * kPanel) : 1, group = fitting > 1 ? fitting : 1;
  float* sums = scratch_of<float>(kScratchD, static_cast<size_t>(group * rows * kPanel));
  const bool in_panels = !kGradient && g.packed_inputs > 0;
  float* turned = in_panels ? nullptr : scratch_of<float>(kScratchB, static_cast<size_t>((kChunk + 1) * kPanel));
  for (int64_t from = begin; from < end; from += group) {
    const int64_t to = end - from < group ? end : from + group;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t panel = from; panel < to; ++panel) {
        const PanelPart part = panel_part<Units>(strips, count, panel, chunk);
        if (part.length == 0) continue;
        const float* weights = turned;
        if (in_panels) {
          weights = packed_part<Units>(g, panel, chunk);
        } else if constexpr (kGradient) {
          pack_columns<Units>(turned, kPanel, b + part.start * g.b_stride + part.column, g.b_stride, part.length,
                              part.columns);
        } else {
          pack_rows<Units>(turned, kPanel, b + part.column * g.b_stride + part.start, g.b_stride, part.columns,
                           part.length);
        }
        int64_t next_panel = panel + 1, next_chunk = chunk;
        if (next_panel == to) {
          next_chunk = chunk + 1 < chunks ? chunk + 1 : 0;
          next_panel = next_chunk > 0 ? from : to;
        }
        PanelPart next = {};
        if (next_panel < end) next = panel_part<Units>(strips, count, next_panel, next_chunk);
        Ahead ahead;
        if (in_panels) {
          ahead = Ahead::of(packed_part<Units>(g, next_panel, next_chunk), 0, 1, units_of<Units>(next.length) * kPanel);
        } else if constexpr (kGradient) {
          ahead = Ahead::of(b + next.start * g.b_stride + next.column, g.b_stride, next.length, next.columns);
        } else {
          ahead = Ahead::of(b + next.column * g.b_stride + next.start, g.b_stride, next.columns, next.length);
        }
        for (int64_t s = 0; s < count; ++s) {
          const Strip& strip = strips[s];
          const int64_t left = units_of<Units>(strip.k) - chunk * kChunk;
          if (strip.n <= part.column || left <= 0) continue;
          const int64_t width = strip.n - part.column < kPanel ? strip.n - part.column : kPanel;
          if (left <= kChunk) ask_for_tile<T, kGradient>(g, strip.row, strip.rows, part.column, width);
          float* tile = sums + ((panel - from) * rows + strip.row - first_row) * kPanel;
          const float* units = strip.packed + chunk * kChunk * strip.rows;
          const bool odd = Units::kPerUnit == 2 && in_panels && strip.k % 2 != 0 && strip.k != g.packed_inputs;
          if (odd && left <= kChunk) {
            sum_odd<Multiply>(strip.rows, units, weights, left, tile, chunk > 0, ahead);
          } else {
            sum_in_blocks<Multiply>(strip.rows, units, weights, left < kChunk ? left : kChunk, tile, chunk > 0, ahead);
          }
          if (left > kChunk) continue;
          finish_strip<T, kGradient>(g, strip.row, strip.rows, part.column, width, tile);
        }
      }
    }
  }
}

template <class T, class Units, class Multiply, bool kGradient>
void run_tasks(const SpanGemm& g, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end;) {
    const int64_t block = task / g.panels, panel = task % g.panels;
    const int64_t panels = end - task < g.panels - panel ? end - task : g.panels - panel;
    const int64_t first = g.first_row + block * g.row_block;
    const Strip* strips = nullptr;
    const int64_t count = pack_strips<Units>(g, first, first + g.row_block, &strips);
    run_panels<T, Units, Multiply, kGradient>(g, strips, count, first, g.row_block, panel, panel + panels);
    task += panels;
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

template <class T, class Units, class Multiply>
void run_either(const SpanGemm& g, int64_t begin, int64_t end) {
  if (g.gradient) {
    run_tasks<T, Units, Multiply, true>(g, begin, end);
  } else {
    run_tasks<T, Units, Multiply, false>(g, begin, end);
  }
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
#include "cpu/gemm_tiles.h"
namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {
#endif

void gemm(const SpanGemm& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32:
      return run_either<float, FloatUnits<float>, MultiplyNumbers<float>>(g, begin, end);
    case DType::kFloat16:
      return run_either<Half, FloatUnits<Half>, MultiplyNumbers<float>>(g, begin, end);
    case DType::kBFloat16:
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
      if (with_tiles([&](auto kind) { run_tile_gemm<typename decltype(kind)::Tiles>(g, begin, end); })) return;
      if (use_bfloat16_dot() && (g.packed_inputs > 0 || pairs_fit(g)))
        return run_either<NativeBFloat16, BFloat16Pairs, MultiplyBFloat16Pairs>(g, begin, end);
#endif
      return run_either<BFloat16, FloatUnits<BFloat16>, MultiplyNumbers<float>>(g, begin, end);
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

}  // namespace

constexpr GemmKernels kGemm = {gemm, epilogue, gradient, kPanel};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
