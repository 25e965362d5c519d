// LayerNorm of rows, with what comes before it: bias, dropout and residual. Compiled once for each instruction set.
//
// A row is read once, its sum is kept in a scratch row in the wide type, and mean and variance are taken from there in
// two passes (no E[x^2] - mean^2, which cancels). 2 reads and 1 write of a row for each row of h.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/philox.h"
#include "dynabert/simd/row_moments.h"

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// One row of h = residual + factor * (x + x_bias), register by register. Pointers that are null take no part.
// kPlain: inference, where no factors are applied and nobody wants h.
template <class T, bool kPlain>
struct InputRow {
  using S = Wide<T>;
  const T *x, *x_bias, *residual;
  const S* factors;
  T* hidden;
  S* h;

  DYNABERT_INLINE Vector<S> at(int64_t c) const {
    Vector<S> v = load(x + c);
    if (x_bias) v = v + load(x_bias + c);
    if (!kPlain && factors) v = v * load(factors + c);
    if (residual) v = v + load(residual + c);
    store(h + c, v);
    if (!kPlain && hidden) store(hidden + c, v);
    return v;
  }
  DYNABERT_INLINE Vector<S> part(int64_t c, int n) const {
    Vector<S> v = load_part(x + c, n);
    if (x_bias) v = v + load_part(x_bias + c, n);
    if (!kPlain && factors) v = v * load_part(factors + c, n);
    if (residual) v = v + load_part(residual + c, n);
    v = keep_part(v, n);
    store(h + c, v);
    if (!kPlain && hidden) store_part(hidden + c, v, n);
    return v;
  }
};

// A vector of the call in the wide type, readable to the end of its last register: widened once where the rows repay
// it.
template <class T>
DYNABERT_INLINE const Wide<T>* widened(const T* v, int64_t columns, Wide<T>* into) {
  constexpr int64_t kStep = kLanes<Wide<T>>;
  int64_t c = 0;
  for (; c + kStep <= columns; c += kStep) store(into + c, load(v + c));
  if (c < columns) store(into + c, load_part(v + c, static_cast<int>(columns - c)));
  return into;
}

// kTogether rows side by side: what one row waits for, the other's work fills, and both share the loads of the weights.
template <class T, bool kPlain, int kTogether>
DYNABERT_INLINE void norm_rows(const LayerNormForward& a, int64_t row, const Wide<T>* weight, const Wide<T>* bias,
                               Wide<T>* factors, Wide<T>* scratch) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t columns = a.columns, whole = columns / kStep * kStep, by_four = columns / (4 * kStep) * (4 * kStep);
  const int rest = static_cast<int>(columns - whole);
  const int64_t padded = (columns + kStep - 1) / kStep * kStep;
  S mean[kTogether], rstd[kTogether];
  for (int i = 0; i < kTogether; ++i) {
    InputRow<T, kPlain> in = {};
    in.x = static_cast<const T*>(a.x) + (row + i) * a.x_stride;
    in.x_bias = static_cast<const T*>(a.x_bias);
    in.residual = a.residual ? static_cast<const T*>(a.residual) + (row + i) * a.residual_stride : nullptr;
    in.factors = factors;
    in.hidden = a.hidden ? static_cast<T*>(a.hidden) + (row + i) * a.hidden_stride : nullptr;
    in.h = scratch + i * padded;
    if (!kPlain && factors) {
      dropout_factors(factors, 0, columns, a.dropout, static_cast<uint32_t>(a.first_row_in_group + row + i), 0);
    }
    RowSum<S> sums;
    for (int64_t c = 0; c < by_four; c += 4 * kStep) {
      for (int u = 0; u < 4; ++u) sums.part[u] += in.at(c + u * kStep);
    }
    for (int64_t c = by_four; c < whole; c += kStep) sums.part[0] += in.at(c);
    if (rest) sums.part[1] += in.part(whole, rest);
    mean[i] = sums.total() / static_cast<S>(columns);
  }
  for (int i = 0; i < kTogether; ++i) rstd[i] = reciprocal_spread(scratch + i * padded, columns, mean[i], a.eps);
  T* y = static_cast<T*>(a.y) + row * a.y_stride;
  for (int64_t c = 0; c < whole; c += kStep) {
    const Vector<S> w = load(weight + c), b = load(bias + c);
    for (int i = 0; i < kTogether; ++i) {
      const Vector<S> normal = (load(scratch + i * padded + c) - broadcast(mean[i])) * broadcast(rstd[i]);
      store(y + i * a.y_stride + c, fma(normal, w, b));
    }
  }
  for (int i = 0; i < kTogether; ++i) {
    if (rest) {
      const Vector<S> normal = (load(scratch + i * padded + whole) - broadcast(mean[i])) * broadcast(rstd[i]);
      store_part(y + i * a.y_stride + whole, fma(normal, load(weight + whole), load(bias + whole)), rest);
    }
    if (a.mean) {
      static_cast<S*>(a.mean)[row + i] = mean[i];
      static_cast<S*>(a.rstd)[row + i] = rstd[i];
    }
  }
}

template <class T, bool kPlain>
void layer_norm_rows(const LayerNormForward& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  constexpr int kTogether = kPlain ? 2 : 1;  // one row of factors is in memory
  const int64_t padded = (a.columns + kStep - 1) / kStep * kStep;
  S* scratch = scratch_of<S>(kScratchA, static_cast<size_t>((2 + kTogether) * padded));
  const S* weight = widened(static_cast<const T*>(a.weight), a.columns, scratch + kTogether * padded);
  const S* bias = widened(static_cast<const T*>(a.bias), a.columns, scratch + (kTogether + 1) * padded);
  S* factors =
      !kPlain && a.dropout.threshold != 0 ? scratch_of<S>(kScratchB, static_cast<size_t>(a.columns + kStep)) : nullptr;
  int64_t row = begin;
  for (; row + kTogether <= end; row += kTogether) {
    norm_rows<T, kPlain, kTogether>(a, row, weight, bias, factors, scratch);
  }
  for (; row < end; ++row) norm_rows<T, kPlain, 1>(a, row, weight, bias, factors, scratch);
}

// One register of the row: dx needs two sums over the row first, so everything is computed twice rather than stored.
template <class T>
struct BackwardRow {
  using S = Wide<T>;
  const T *dy, *x, *residual, *weight;
  Vector<S> centre, spread;

  DYNABERT_INLINE void at(int64_t c, Vector<S>& gradient, Vector<S>& normal, Vector<S>& scaled) const {
    gradient = load(dy + c);
    Vector<S> h = load(x + c);
    if (residual) h = h + load(residual + c);
    normal = (h - centre) * spread;
    scaled = gradient * load(weight + c);
  }
  DYNABERT_INLINE void part(int64_t c, int n, Vector<S>& gradient, Vector<S>& normal, Vector<S>& scaled) const {
    gradient = load_part(dy + c, n);
    Vector<S> h = load_part(x + c, n);
    if (residual) h = h + load_part(residual + c, n);
    normal = keep_part((h - centre) * spread, n);
    scaled = gradient * load_part(weight + c, n);
  }
};

template <class T>
void layer_norm_backward_chunks(const LayerNormBackward& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t columns = a.columns, whole = columns / kStep * kStep;
  const int rest = static_cast<int>(columns - whole);
  S* factors = a.dropout.threshold != 0 ? scratch_of<S>(kScratchA, static_cast<size_t>(columns + kStep)) : nullptr;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    S* dw = static_cast<S*>(a.partials) + chunk * a.sums * columns;
    S* db = dw + columns;
    S* dbranch = a.sums == 3 ? db + columns : nullptr;
    for (int64_t c = 0; c < a.sums * columns; ++c) dw[c] = S(0);
    const int64_t last = (chunk + 1) * a.rows_per_chunk < a.rows ? (chunk + 1) * a.rows_per_chunk : a.rows;
    for (int64_t row = chunk * a.rows_per_chunk; row < last; ++row) {
      BackwardRow<T> in;
      in.dy = static_cast<const T*>(a.dy) + row * a.dy_stride;
      in.x = static_cast<const T*>(a.x) + row * a.x_stride;
      in.residual = a.residual ? static_cast<const T*>(a.residual) + row * a.residual_stride : nullptr;
      in.weight = static_cast<const T*>(a.weight);
      in.centre = broadcast(static_cast<const S*>(a.mean)[row]);
      in.spread = broadcast(static_cast<const S*>(a.rstd)[row]);
      T* dx = static_cast<T*>(a.dx) + row * a.dx_stride;
      Vector<S> gradient, normal, scaled, total = {}, projected = {};
      for (int64_t c = 0; c < whole; c += kStep) {
        in.at(c, gradient, normal, scaled);
        total += scaled;
        projected = fma(scaled, normal, projected);
        store(dw + c, fma(gradient, normal, load(dw + c)));
        store(db + c, load(db + c) + gradient);
      }
      if (rest) {
        in.part(whole, rest, gradient, normal, scaled);
        total += scaled;
        projected = fma(scaled, normal, projected);
        store_part(dw + whole, fma(gradient, normal, load_part(dw + whole, rest)), rest);
        store_part(db + whole, load_part(db + whole, rest) + gradient, rest);
      }
      const Vector<S> mean_scaled = broadcast(sum(total) / static_cast<S>(columns));
      const Vector<S> mean_projected = broadcast(sum(projected) / static_cast<S>(columns));
      T* dropped = a.dropped ? static_cast<T*>(a.dropped) + row * a.dropped_stride : nullptr;
      if (factors) dropout_factors(factors, 0, columns, a.dropout, static_cast<uint32_t>(row), 0);
      for (int64_t c = 0; c < whole; c += kStep) {
        in.at(c, gradient, normal, scaled);
        Vector<S> v = (scaled - mean_scaled - normal * mean_projected) * in.spread;
        store(dx + c, v);
        if (factors) v = v * load(factors + c);
        if (dropped) store(dropped + c, v);
        if (dbranch) store(dbranch + c, load(dbranch + c) + v);
      }
      if (rest) {
        in.part(whole, rest, gradient, normal, scaled);
        Vector<S> v = (scaled - mean_scaled - normal * mean_projected) * in.spread;
        store_part(dx + whole, v, rest);
        if (factors) v = v * load_part(factors + whole, rest);
        if (dropped) store_part(dropped + whole, v, rest);
        if (dbranch) store_part(dbranch + whole, load_part(dbranch + whole, rest) + v, rest);
      }
    }
  }
}

template <class T>
void sum_partials(const void* partials, int64_t chunks, int64_t sums, int64_t columns, void* const* outs) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  for (int64_t which = 0; which < sums; ++which) {
    const S* first = static_cast<const S*>(partials) + which * columns;
    T* out = static_cast<T*>(outs[which]);
    for (int64_t c = 0; c < columns; c += kStep) {
      const int n = columns - c < kStep ? static_cast<int>(columns - c) : static_cast<int>(kStep);
      Vector<S> total = {};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) total += load_part(first + chunk * sums * columns + c, n);
      store_part(out + c, total, n);
    }
  }
}

template <class T>
void layer_norm_of(const LayerNormForward& a, int64_t begin, int64_t end) {
  if (a.dropout.threshold == 0 && !a.hidden) return layer_norm_rows<T, true>(a, begin, end);
  layer_norm_rows<T, false>(a, begin, end);
}

void layer_norm_forward(const LayerNormForward& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return layer_norm_of<float>(a, begin, end);
    case DType::kBFloat16:
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
      if (use_bfloat16_dot()) return layer_norm_of<NativeBFloat16>(a, begin, end);
#endif
      return layer_norm_of<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return layer_norm_of<Half>(a, begin, end);
    case DType::kFloat64:
      return layer_norm_of<double>(a, begin, end);
  }
}
void layer_norm_backward(const LayerNormBackward& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return layer_norm_backward_chunks<float>(a, begin, end);
    case DType::kBFloat16:
      return layer_norm_backward_chunks<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return layer_norm_backward_chunks<Half>(a, begin, end);
    case DType::kFloat64:
      return layer_norm_backward_chunks<double>(a, begin, end);
  }
}
void layer_norm_sum_partials(DType dtype, const void* partials, int64_t chunks, int64_t sums, int64_t columns,
                             void* const* out) {
  switch (dtype) {
    case DType::kFloat32:
      return sum_partials<float>(partials, chunks, sums, columns, out);
    case DType::kBFloat16:
      return sum_partials<BFloat16>(partials, chunks, sums, columns, out);
    case DType::kFloat16:
      return sum_partials<Half>(partials, chunks, sums, columns, out);
    case DType::kFloat64:
      return sum_partials<double>(partials, chunks, sums, columns, out);
  }
}

}  // namespace

constexpr LayerNormKernels kLayerNorm = {layer_norm_forward, layer_norm_backward, layer_norm_sum_partials};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
