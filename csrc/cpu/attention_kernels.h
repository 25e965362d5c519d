// Attention over packed sequences with an online softmax. Compiled once for each instruction set: no include guard.
//
// A task is one sequence, one head and a block of queries. For each block of kKeys keys: K turned into panels and V
// copied into panels in scratch memory (the wide type), then for each strip of queries the scores of the block in a
// tile of at most kStrip x kKeys numbers, their exponentials against the running maximum, and the tile times V added to
// the strip's sums. Scores exist only in that tile. 4 D operations and one exponential per query and key.
//
// Where the processor multiplies pairs of bfloat16, Q, K and V stay bfloat16 and the exponentials are rounded to it, as
// PyTorch rounds its probabilities; sums are float32 as ever.

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

// Softmax state of one query: the sums are relative to the largest score so far.
template <class S>
struct SoftmaxState {
  S largest;
  S total;
};

template <class S>
DYNABERT_INLINE S minus_infinity() {
  return -static_cast<S>(__builtin_inf());
}

// Turns a row of `keys` raw scores into exponentials and updates the state; returns what earlier sums are multiplied
// by. `bias`: the row's biases, or null. The row has room for whole registers.
template <class T>
DYNABERT_INLINE Wide<T> softmax_row(Wide<T>* scores, int64_t keys, Wide<T> scale, const T* bias, const Wide<T>* factors,
                                    SoftmaxState<Wide<T>>& state) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t whole = keys / kStep * kStep;
  const int rest = static_cast<int>(keys - whole);
  const Vector<S> times = broadcast(scale);
  Vector<S> high = broadcast(minus_infinity<S>());
  for (int64_t j = 0; j < whole; j += kStep) {
    Vector<S> v = load(scores + j) * times;
    if (bias) {
      v = v + load(bias + j);
      store(scores + j, v);
    }
    high = maximum(high, v);
  }
  if (rest) {
    Vector<S> v = load(scores + whole) * times;
    if (bias) v = v + load_part(bias + whole, rest);
    for (int lane = rest; lane < kStep; ++lane) v[lane] = minus_infinity<S>();
    // Scaled and biased already, unlike the whole registers without a bias.
    store(scores + whole, v);
    high = maximum(high, v);
  }
  S top = largest(high);
  top = state.largest > top ? state.largest : top;
  // A row that so far has only scores of -inf has nothing to be relative to: -inf - (-inf) would be NaN.
  const S shift = top == minus_infinity<S>() ? S(0) : top;
  const Vector<S> down = broadcast(shift);
  Vector<S> sums = {};
  for (int64_t j = 0; j < whole; j += kStep) {
    const Vector<S> raw = load(scores + j);
    // Rounded as the product that the largest was taken of: fused with the difference it would be off by half an ulp of
    // a score, which at 10^10 is over 88, the end of what an exponential holds.
    const Vector<S> p = exp_nonpositive((bias ? raw : rounded(raw * times)) - down);
    sums = sums + p;
    store(scores + j, factors ? p * load(factors + j) : p);
  }
  if (rest) {
    const Vector<S> p = keep_part(exp_nonpositive(load(scores + whole) - down), rest);
    sums = sums + p;
    store(scores + whole, factors ? p * load_part(factors + whole, rest) : p);
  }
  const S correction = exp_nonpositive(broadcast(state.largest - shift))[0];
  state.total = state.total * correction + sum(sums);
  state.largest = top;
  return correction;
}

template <class Products, int kRegisters>
void attention_task(const AttentionForward& a, const AttentionSequence& sequence, int64_t head, int64_t first,
                    int64_t last) {
  using T = typename Products::Element;
  using S = typename Products::Scalar;
  using Multiply = typename Products::Multiply;
  constexpr int64_t kLane = kLanes<S>, kKeyPanel = 2 * kLane, kColumnPanel = kRegisters * kLane;
  constexpr int kKeyUnits = kKeys / Products::kPerUnit;
  const int64_t size = a.head_size, length = sequence.end - sequence.begin, units = units_in<Products>(size);
  const int64_t column_panels = (size + kColumnPanel - 1) / kColumnPanel, padded = column_panels * kColumnPanel;
  const T* q = static_cast<const T*>(a.qkv) + sequence.begin * a.qkv_row + head * a.qkv_head;
  const T* k = q + a.qkv_part;
  const T* v = k + a.qkv_part;
  const T* bias = static_cast<const T*>(a.position_bias);
  if (bias) bias += head * a.bias_head + a.bias_centre;
  Dropout dropout = a.dropout;
  dropout.offset += static_cast<uint64_t>(sequence.group);
  const int64_t queries = last - first;
  S* packed_q = scratch_of<S>(kScratchA, static_cast<size_t>(queries * units + kLane));
  S* panels = scratch_of<S>(kScratchB, static_cast<size_t>(kKeys * units + kKeyUnits * padded));
  S* out = scratch_of<S>(kScratchC, static_cast<size_t>(queries * padded));
  S* tile = scratch_of<S>(kScratchD, static_cast<size_t>(2 * kStrip * kKeys + 2 * kKeys + 2 * queries));
  S* weights = Products::kPerUnit == 1 ? tile : tile + kStrip * kKeys;  // the tile in units of keys
  S* factors = dropout.threshold != 0 ? tile + 2 * kStrip * kKeys : nullptr;
  SoftmaxState<S>* states = reinterpret_cast<SoftmaxState<S>*>(tile + 2 * kStrip * kKeys + 2 * kKeys);
  const int64_t strips = (queries + kStrip - 1) / kStrip;
  for (int64_t i = 0; i < queries; ++i) states[i] = {minus_infinity<S>(), S(0)};
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t row = queries * s / strips, rows = queries * (s + 1) / strips - row;
    turn<Products>(packed_q + row * units, rows, q + (first + row) * a.qkv_row, a.qkv_row, rows, size);
  }
  for (int64_t key = 0; key < length; key += kKeys) {
    const int64_t keys = length - key < kKeys ? length - key : kKeys;
    S* k_panels = panels;
    S* v_panels = panels + kKeys * units;
    for (int64_t j = 0; j < keys; j += kKeyPanel) {
      const int64_t rows = keys - j < kKeyPanel ? keys - j : kKeyPanel;
      turn<Products>(k_panels + j * units, kKeyPanel, k + (key + j) * a.qkv_row, a.qkv_row, rows, size);
    }
    copy_columns<Products>(v_panels, kColumnPanel, kKeyUnits, v + key * a.qkv_row, a.qkv_row, keys, size);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = queries * s / strips, rows = queries * (s + 1) / strips - row;
      for (int64_t j = 0; j < keys; j += kKeyPanel) {
        multiply<Multiply, 2>(rows, packed_q + row * units, k_panels + j * units, units, tile + j, kKeys);
      }
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t query = first + row + i;
        if (factors) {
          const int64_t place = sequence.begin - sequence.group_begin + query;
          dropout_factors(factors, key, keys, dropout, static_cast<uint32_t>(place), static_cast<uint32_t>(head));
        }
        const S correction = softmax_row<T>(tile + i * kKeys, keys, static_cast<S>(a.scale),
                                            bias ? bias + key - query : nullptr, factors, states[row + i]);
        if constexpr (Products::kPerUnit == 2) {
          T* pairs = reinterpret_cast<T*>(weights) + i * kKeys;
          for (int64_t j = 0; j < keys; j += kLane) store(pairs + j, load(tile + i * kKeys + j));
        }
        if (key == 0 || correction == S(1)) continue;
        S* line = out + (row + i) * padded;
        for (int64_t c = 0; c < padded; c += kLane) store(line + c, load(line + c) * broadcast(correction));
      }
      for (int64_t c = 0; c < column_panels; ++c) {
        const S* panel = v_panels + c * kColumnPanel * kKeyUnits;
        S* sums = out + row * padded + c * kColumnPanel;
        const int64_t here = units_in<Products>(keys);
        if (key == 0) {
          multiply<Multiply, kRegisters, kKeyUnits, false>(rows, weights, panel, here, sums, padded);
        } else {
          multiply<Multiply, kRegisters, kKeyUnits, true>(rows, weights, panel, here, sums, padded);
        }
      }
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t row = sequence.begin + first + i;
    T* line = static_cast<T*>(a.out) + row * a.out_row + head * a.out_head;
    const Vector<S> inverse = broadcast(S(1) / states[i].total);
    for (int64_t c = 0; c < size; c += kLane) {
      const Vector<S> value = load(out + i * padded + c) * inverse;
      if (size - c >= kLane) {
        store(line + c, value);
      } else {
        store_part(line + c, value, static_cast<int>(size - c));
      }
    }
    if (a.lse) {
      static_cast<S*>(a.lse)[head * a.lse_head + row] =
          states[i].largest + static_cast<S>(__builtin_log(states[i].total));
    }
  }
}

template <class Products>
void attention_tasks(const AttentionForward& a, int64_t begin, int64_t end) {
  int64_t s = 0;
  for (int64_t task = begin; task < end; ++task) {
    while (s + 1 < a.num_sequences && a.sequences[s + 1].first_task <= task) ++s;
    const AttentionSequence& sequence = a.sequences[s];
    const int64_t length = sequence.end - sequence.begin;
    const int64_t blocks = (length + a.query_block - 1) / a.query_block;
    const int64_t head = (task - sequence.first_task) / blocks, block = (task - sequence.first_task) % blocks;
    const int64_t first = length * block / blocks, last = length * (block + 1) / blocks;
    if (a.head_size <= kLanes<typename Products::Scalar>) {
      attention_task<Products, 1>(a, sequence, head, first, last);
    } else {
      attention_task<Products, 2>(a, sequence, head, first, last);
    }
  }
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
#include "cpu/attention_tiles.h"
namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {
#endif

void attention(const AttentionForward& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return attention_tasks<NumberProducts<float>>(a, begin, end);
    case DType::kBFloat16:
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
      if (with_tiles([&](auto kind) { tile_attention_tasks<typename decltype(kind)::Tiles>(a, begin, end); })) return;
      if (use_bfloat16_dot()) return attention_tasks<PairProducts>(a, begin, end);
#endif
      return attention_tasks<NumberProducts<BFloat16>>(a, begin, end);
    case DType::kFloat16:
      return attention_tasks<NumberProducts<Half>>(a, begin, end);
    case DType::kFloat64:
      return attention_tasks<NumberProducts<double>>(a, begin, end);
  }
}

}  // namespace

constexpr AttentionKernels kAttention = {attention};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
