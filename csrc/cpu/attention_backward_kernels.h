// The backward of attention over packed sequences. Compiled once for each instruction set: no include guard.
//
// With p = exp(q . k * scale + bias - lse), f the dropout factors and delta = dout . out:
//   dv_j = sum_i f_ij p_ij dout_i     ds_ij = p_ij (f_ij dout_i . v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j      dk_j = scale sum_i ds_ij q_i      dbias[j - i] = sum of ds_ij
// A task is one sequence and one head, so nobody else adds to its results: no atomics, one order. For each block of
// kKeys keys and each block of at most kQueries queries: strips of queries give raw scores and dout . v in two tiles,
// one pass over their rows turns these into f p and ds, and ds times K goes to dq; then both tiles of the block, read
// by column, give dv and dk. Probabilities exist only in these tiles. 10 D operations and one exponential per query and
// key, in five products where a task for dq and one for dk and dv would need seven.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/math.h"
#include "dynabert/simd/philox.h"
#include "dynabert/simd/tile.h"
#include "dynabert/simd/transpose.h"
#include "dynabert/simd/panels.h"
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
#include "dynabert/simd/tile_registers.h"
#include "dynabert/simd/column_pairs.h"
#endif

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr int kKeys = 128;
constexpr int64_t kQueries = 128;

// What one query needs to turn its raw scores and dout . v into f p and ds.
template <class T>
struct GradientRow {
  using S = Wide<T>;
  S scale, lse, delta;
  const T* bias;     // of the row's first key, or null
  const S* factors;  // or null
  S* sums;           // of the row's first key, or null

  DYNABERT_INLINE void at(S* scores, S* gradients, int64_t j, int left) const {
    constexpr int kLane = kLanes<S>;
    const bool whole = left >= kLane;
    // Rounded as in the forward, whose lse it is held against.
    Vector<S> score = rounded(load(scores + j) * broadcast(scale));
    if (bias) score = score + (whole ? load(bias + j) : load_part(bias + j, left));
    // No probability is above 1, whatever rounding says of very large scores.
    Vector<S> p = exp_nonpositive(minimum(Vector<S>{}, score - broadcast(lse)));
    Vector<S> dp = load(gradients + j);
    Vector<S> dropped = p;
    if (factors) {
      const Vector<S> f = load(factors + j);
      dropped = p * f;
      dp = dp * f;
    }
    Vector<S> ds = p * (dp - broadcast(delta));
    if (!whole) {
      dropped = keep_part(dropped, left);
      ds = keep_part(ds, left);
    }
    store(scores + j, dropped);
    store(gradients + j, ds);
    if (sums) store(sums + j, load(sums + j) + ds);
  }

  DYNABERT_INLINE void run(S* scores, S* gradients, int64_t keys) const {
    constexpr int64_t kLane = kLanes<S>;
    const int64_t whole = keys / kLane * kLane;
    for (int64_t j = 0; j < whole; j += kLane) at(scores, gradients, j, kLane);
    if (whole < keys) at(scores, gradients, whole, static_cast<int>(keys - whole));
  }
};

// delta of one row.
template <class T>
DYNABERT_INLINE Wide<T> dot_row(const T* a, const T* b, int64_t length) {
  using S = Wide<T>;
  constexpr int64_t kLane = kLanes<S>;
  const int64_t whole = length / kLane * kLane;
  Vector<S> total = {};
  for (int64_t c = 0; c < whole; c += kLane) total = fma(load(a + c), load(b + c), total);
  if (whole < length) {
    const int rest = static_cast<int>(length - whole);
    total = fma(load_part(a + whole, rest), load_part(b + whole, rest), total);
  }
  return sum(total);
}

// rows x size numbers times `scale`, to the element type.
template <class T>
void store_rows(T* out, int64_t stride, const Wide<T>* sums, int64_t sums_stride, int64_t rows, int64_t size,
                Wide<T> scale) {
  constexpr int64_t kLane = kLanes<Wide<T>>;
  const Vector<Wide<T>> times = broadcast(scale);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < size; c += kLane) {
      const Vector<Wide<T>> value = load(sums + i * sums_stride + c) * times;
      if (size - c >= kLane) {
        store(out + i * stride + c, value);
      } else {
        store_part(out + i * stride + c, value, static_cast<int>(size - c));
      }
    }
  }
}

// Memory of a task, cut from one piece.
template <class S>
struct Workspace {
  S* next;
  DYNABERT_INLINE S* take(int64_t numbers) {
    S* const here = next;
    next += (numbers + 15) / 16 * 16;
    return here;
  }
};

// Work on one sequence and one head. The sequence's queries, and the gradients of its outputs, are turned once: in
// strips for the scores, in panels for dk and dv.
template <class Products, int kRegisters>
struct BackwardTask {
  using T = typename Products::Element;
  using S = typename Products::Scalar;
  using Multiply = typename Products::Multiply;
  static constexpr int64_t kLane = kLanes<S>, kKeyPanel = 2 * kLane, kColumnPanel = kRegisters * kLane;
  static constexpr int64_t kPerUnit = Products::kPerUnit;
  static constexpr int kKeyUnits = kKeys / kPerUnit;

  const AttentionBackward& a;
  const AttentionSequence& sequence;
  const int64_t head, length, size, units, padded, column_panels, query_units;
  const T *q, *k, *v, *dout, *out;
  const T* bias;
  const S* lse;
  T* dq;
  S* sums;
  Dropout dropout;
  S *q_strips, *dout_strips, *q_panels, *dout_panels;  // of all queries
  S *k_turned, *v_turned, *k_panels;                   // of a block of keys
  S *dq_sums, *dk_sums, *dv_sums, *delta, *factors;
  S *weights, *gradients;       // f p and ds of a block of queries and keys, in units of queries
  S *scores, *score_gradients;  // one strip of them, as numbers; with numbers a part of the above
  S* gradient_rows;             // ds of one strip in units of keys

  BackwardTask(const AttentionBackward& arguments, const AttentionSequence& s, int64_t h)
      : a(arguments),
        sequence(s),
        head(h),
        length(s.end - s.begin),
        size(a.head_size),
        units(units_in<Products>(size)),
        padded((size + kColumnPanel - 1) / kColumnPanel * kColumnPanel),
        column_panels(padded / kColumnPanel),
        query_units(units_in<Products>(length)) {
    q = static_cast<const T*>(a.qkv) + s.begin * a.qkv_row + h * a.qkv_head;
    k = q + a.qkv_part;
    v = k + a.qkv_part;
    dout = static_cast<const T*>(a.dout) + s.begin * a.dout_row + h * a.dout_head;
    out = static_cast<const T*>(a.out) + s.begin * a.out_row + h * a.out_head;
    bias = static_cast<const T*>(a.position_bias);
    if (bias) bias += h * a.bias_head + a.bias_centre;
    lse = static_cast<const S*>(a.lse) + h * a.lse_head + s.begin;
    dq = static_cast<T*>(a.dqkv) + s.begin * a.dqkv_row + h * a.dqkv_head;
    // The sum of distance 0.
    sums = a.sums ? static_cast<S*>(a.sums) + s.first_sum + h * sums_of(length) + length - 1 : nullptr;
    dropout = a.dropout;
    dropout.offset += static_cast<uint64_t>(s.group);
    const int64_t queries = length < kQueries ? length : kQueries;
    const int64_t strips = length * units + kLane, panels = query_units * padded;
    constexpr int64_t kUnits = (kQueries + kPerUnit - 1) / kPerUnit;
    const int64_t tile = (queries < kUnits ? queries : kUnits) * kKeys;
    const int64_t strip = kPerUnit == 1 ? 0 : kStrip * kKeys;
    const int64_t numbers = 2 * strips + 2 * panels + 2 * kKeys * units + kKeyUnits * padded + length * padded +
                            2 * kKeys * padded + length + kKeys + kLane + 2 * tile + 3 * strip + 16 * 16;
    Workspace<S> space = {scratch_of<S>(kScratchA, static_cast<size_t>(numbers))};
    q_strips = space.take(strips);
    dout_strips = space.take(strips);
    q_panels = space.take(panels);
    dout_panels = space.take(panels);
    k_turned = space.take(kKeys * units);
    v_turned = space.take(kKeys * units);
    k_panels = space.take(kKeyUnits * padded);
    dq_sums = space.take(length * padded);
    dk_sums = space.take(kKeys * padded);
    dv_sums = space.take(kKeys * padded);
    delta = space.take(length);
    factors = dropout.threshold != 0 ? space.take(kKeys + kLane) : nullptr;
    weights = space.take(tile);
    gradients = space.take(tile);
    scores = space.take(strip);
    score_gradients = space.take(strip);
    gradient_rows = space.take(strip);
  }

  // Queries are cut into blocks and these into strips of nearly equal height, at whole units: the first row of a part.
  static DYNABERT_INLINE int64_t cut(int64_t rows, int64_t part, int64_t parts) {
    const int64_t all = units_in<Products>(rows), row = all * part / parts * kPerUnit;
    return row < rows ? row : rows;
  }

  void pack_queries(int64_t first, int64_t last) {
    const int64_t strips = (last - first + kStrip - 1) / kStrip;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = first + cut(last - first, s, strips), rows = first + cut(last - first, s + 1, strips) - row;
      turn<Products>(q_strips + row * units, rows, q + row * a.qkv_row, a.qkv_row, rows, size);
      turn<Products>(dout_strips + row * units, rows, dout + row * a.dout_row, a.dout_row, rows, size);
    }
  }

  void pack_keys(int64_t key, int64_t keys) {
    for (int64_t j = 0; j < keys; j += kKeyPanel) {
      const int64_t rows = keys - j < kKeyPanel ? keys - j : kKeyPanel;
      turn<Products>(k_turned + j * units, kKeyPanel, k + (key + j) * a.qkv_row, a.qkv_row, rows, size);
      turn<Products>(v_turned + j * units, kKeyPanel, v + (key + j) * a.qkv_row, a.qkv_row, rows, size);
    }
    copy_columns<Products>(k_panels, kColumnPanel, kKeyUnits, k + key * a.qkv_row, a.qkv_row, keys, size);
  }

  // f p, ds and dq of `rows` queries from `row` on; the tiles' rows start at `place`.
  void strip(int64_t key, int64_t keys, int64_t row, int64_t rows, int64_t place) {
    S* const p = kPerUnit == 1 ? weights + place * kKeys : scores;
    S* const ds = kPerUnit == 1 ? gradients + place * kKeys : score_gradients;
    for (int64_t j = 0; j < keys; j += kKeyPanel) {
      multiply<Multiply, 2>(rows, q_strips + row * units, k_turned + j * units, units, p + j, kKeys);
      multiply<Multiply, 2>(rows, dout_strips + row * units, v_turned + j * units, units, ds + j, kKeys);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t query = row + i;
      if (factors) {
        const int64_t where = sequence.begin - sequence.group_begin + query;
        dropout_factors(factors, key, keys, dropout, static_cast<uint32_t>(where), static_cast<uint32_t>(head));
      }
      const GradientRow<T> one = {static_cast<S>(a.scale),
                                  lse[query],
                                  delta[query],
                                  bias ? bias + key - query : nullptr,
                                  factors,
                                  sums ? sums + key - query : nullptr};
      one.run(p + i * kKeys, ds + i * kKeys, keys);
    }
    if constexpr (kPerUnit == 2) pair_up(keys, rows, place);
    const S* lines = kPerUnit == 1 ? ds : gradient_rows;
    for (int64_t c = 0; c < column_panels; ++c) {
      const S* panel = k_panels + c * kColumnPanel * kKeyUnits;
      S* into = dq_sums + row * padded + c * kColumnPanel;
      if (key == 0) {
        multiply<Multiply, kRegisters, kKeyUnits, false>(rows, lines, panel, units_in<Products>(keys), into, padded);
      } else {
        multiply<Multiply, kRegisters, kKeyUnits, false, true>(rows, lines, panel, units_in<Products>(keys), into,
                                                               padded);
      }
    }
  }

  // The strip's f p and ds as pairs of bfloat16: of neighbouring queries for dv and dk, of neighbouring keys for dq.
  void pair_up(int64_t keys, int64_t rows, int64_t place) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
    for (int64_t i = 0; i < rows; i += 2) {
      S* const p = weights + (place + i) / 2 * kKeys;
      S* const ds = gradients + (place + i) / 2 * kKeys;
      NativeBFloat16* const lines = reinterpret_cast<NativeBFloat16*>(gradient_rows);
      for (int64_t j = 0; j < keys; j += kLane) {
        const UShort first = to_native_bfloat16(load(score_gradients + i * kKeys + j));
        __builtin_memcpy(lines + i * kKeys + j, &first, sizeof first);
        UShort second = {}, dropped = {};
        if (i + 1 < rows) {
          second = to_native_bfloat16(load(score_gradients + (i + 1) * kKeys + j));
          __builtin_memcpy(lines + (i + 1) * kKeys + j, &second, sizeof second);
          dropped = to_native_bfloat16(load(scores + (i + 1) * kKeys + j));
        }
        store(ds + j, BFloat16Pairs::pair(first, second));
        store(p + j, BFloat16Pairs::pair(to_native_bfloat16(load(scores + i * kKeys + j)), dropped));
      }
    }
#endif
  }

  template <bool kAdd>
  void add_keys(int64_t keys, int64_t first, int64_t queries) {
    const int64_t strips = (keys + kStrip - 1) / kStrip, here = units_in<Products>(queries);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = keys * s / strips, rows = keys * (s + 1) / strips - row;
      for (int64_t c = 0; c < column_panels; ++c) {
        const int64_t panel = (c * query_units + first / kPerUnit) * kColumnPanel;
        const int64_t into = row * padded + c * kColumnPanel;
        multiply<Multiply, kRegisters, 0, false, kAdd, kKeys>(rows, weights + row, dout_panels + panel, here,
                                                              dv_sums + into, padded);
        multiply<Multiply, kRegisters, 0, false, kAdd, kKeys>(rows, gradients + row, q_panels + panel, here,
                                                              dk_sums + into, padded);
      }
    }
  }

  void run() {
    const int64_t blocks = (length + kQueries - 1) / kQueries;
    for (int64_t b = 0; b < blocks; ++b) pack_queries(cut(length, b, blocks), cut(length, b + 1, blocks));
    copy_columns<Products>(q_panels, kColumnPanel, query_units, q, a.qkv_row, length, size);
    copy_columns<Products>(dout_panels, kColumnPanel, query_units, dout, a.dout_row, length, size);
    for (int64_t i = 0; i < length; ++i) delta[i] = dot_row(dout + i * a.dout_row, out + i * a.out_row, size);
    if (sums) {
      for (int64_t i = 0; i < sums_of(length); ++i) sums[i + 1 - length] = S(0);
    }
    for (int64_t key = 0; key < length; key += kKeys) {
      const int64_t keys = length - key < kKeys ? length - key : kKeys;
      pack_keys(key, keys);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = cut(length, b, blocks), queries = cut(length, b + 1, blocks) - first;
        const int64_t strips = (queries + kStrip - 1) / kStrip;
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t place = cut(queries, s, strips), rows = cut(queries, s + 1, strips) - place;
          strip(key, keys, first + place, rows, place);
        }
        b == 0 ? add_keys<false>(keys, first, queries) : add_keys<true>(keys, first, queries);
      }
      T* const dk = dq + a.dqkv_part + key * a.dqkv_row;
      store_rows(dk, a.dqkv_row, dk_sums, padded, keys, size, static_cast<S>(a.scale));
      store_rows(dk + a.dqkv_part, a.dqkv_row, dv_sums, padded, keys, size, S(1));
    }
    store_rows(dq, a.dqkv_row, dq_sums, padded, length, size, static_cast<S>(a.scale));
  }
};

template <class Products>
void backward_tasks(const AttentionBackward& a, int64_t begin, int64_t end) {
  int64_t s = 0;
  for (int64_t task = begin; task < end; ++task) {
    while (s + 1 < a.num_sequences && a.sequences[s + 1].first_task <= task) ++s;
    const AttentionSequence& sequence = a.sequences[s];
    const int64_t head = task - sequence.first_task;
    if (a.head_size <= kLanes<typename Products::Scalar>) {
      BackwardTask<Products, 1>(a, sequence, head).run();
    } else {
      BackwardTask<Products, 2>(a, sequence, head).run();
    }
  }
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
#include "cpu/attention_backward_tiles.h"
namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {
#endif

void attention_backward(const AttentionBackward& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return backward_tasks<NumberProducts<float>>(a, begin, end);
    case DType::kBFloat16:
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
      if (with_tiles([&](auto kind) { tile_backward_tasks<typename decltype(kind)::Tiles>(a, begin, end); })) return;
      if (use_bfloat16_dot()) return backward_tasks<PairProducts>(a, begin, end);
#endif
      return backward_tasks<NumberProducts<BFloat16>>(a, begin, end);
    case DType::kFloat16:
      return backward_tasks<NumberProducts<Half>>(a, begin, end);
    case DType::kFloat64:
      return backward_tasks<NumberProducts<double>>(a, begin, end);
  }
}

template <class T>
void sum_heads(const AttentionBackward& a, T* dbias, int64_t distances, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kLane = kLanes<S>;
  S* total = scratch_of<S>(kScratchA, static_cast<size_t>(distances + 2 * kLane));
  for (int64_t head = begin; head < end; ++head) {
    for (int64_t i = 0; i < distances + 2 * kLane; ++i) total[i] = S(0);
    for (int64_t s = 0; s < a.num_sequences; ++s) {
      const AttentionSequence& sequence = a.sequences[s];
      if (sequence.heads <= head) continue;
      const int64_t length = sequence.end - sequence.begin;
      const S* sums = static_cast<const S*>(a.sums) + sequence.first_sum + head * sums_of(length);
      S* into = total + distances / 2 - (length - 1);
      for (int64_t i = 0; i < 2 * length - 1; i += kLane) store(into + i, load(into + i) + load(sums + i));
    }
    T* line = dbias + head * distances;
    for (int64_t i = 0; i < distances; i += kLane) {
      if (distances - i >= kLane) {
        store(line + i, load(total + i));
      } else {
        store_part(line + i, load(total + i), static_cast<int>(distances - i));
      }
    }
  }
}

void sum_bias(const AttentionBackward& a, void* dbias, int64_t distances, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return sum_heads(a, static_cast<float*>(dbias), distances, begin, end);
    case DType::kBFloat16:
      return sum_heads(a, static_cast<BFloat16*>(dbias), distances, begin, end);
    case DType::kFloat16:
      return sum_heads(a, static_cast<Half*>(dbias), distances, begin, end);
    case DType::kFloat64:
      return sum_heads(a, static_cast<double*>(dbias), distances, begin, end);
  }
}

}  // namespace

constexpr AttentionBackwardKernels kAttentionBackward = {attention_backward, sum_bias};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
