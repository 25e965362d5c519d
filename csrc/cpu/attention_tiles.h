// Attention in bfloat16 through tile registers. A part of attention_kernels.h, for AVX-512 only.
//
// The same task and the same online softmax as without tiles, for strips of up to 32 queries. Of Q K^T the left side
// are rows of Q, copied with zeros behind them, the right side K in units along the head's size; of P V the left side
// are the exponentials, which the softmax leaves as bfloat16 in the place of the scores, the right side V in pairs of
// keys. Keys past the end have the exponential 0 and zeros for V. The softmax takes 16 queries at a time: what belongs
// to a query is then one lane of a register, and a query's result does not depend on which others are beside it.
//
// A head's rows are far apart in memory: those of the next task are asked for beside the softmax of this one.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr int64_t kTileKeys = 128;                       // keys of a block
constexpr int64_t kScoreStride = kTileKeys + kTileSide;  // one line more, so that rows share no set of the cache
constexpr int64_t kRowsAtOnce = kLanes<float>;

struct LargerLanes {
  static DYNABERT_INLINE __m512 join(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
};
struct SummedLanes {
  static DYNABERT_INLINE __m512 join(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

// Lane i: all lanes of v[i] joined, always in the same order.
template <class Lanes>
DYNABERT_INLINE Float join_lanes(const Float* v) {
  __m512 t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = (__m512)v[2 * i], b = (__m512)v[2 * i + 1];
    t[i] = Lanes::join(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = (__m512d)t[2 * i], b = (__m512d)t[2 * i + 1];
    t[i] = Lanes::join((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 a = t[2 * i], b = t[2 * i + 1];
    t[i] = Lanes::join(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  return (Float)Lanes::join(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
}

// How raw scores become exponents of 2: (score - largest) * times. With a bias, and with a scale that is not positive,
// scores are scaled before the largest is taken, else after: for them the difference is exact, or smaller than a score.
struct TileSoftmax {
  bool scale_first;
  float scale, times;  // times: of a score, as it is when the largest is taken

  static TileSoftmax of(double scale, bool bias) {
    const float s = static_cast<float>(scale);
    const bool first = bias || !(s > 1e-30f);
    return {first, s, first ? kLog2E : s * kLog2E};
  }
};

// Scales a row and adds its bias.
DYNABERT_INLINE void scale_row(float* scores, int64_t keys, float scale, const BFloat16* bias) {
  const Float times = broadcast(scale);
  for (int64_t j = 0; j < keys; j += kRowsAtOnce) {
    const int here = keys - j < kRowsAtOnce ? static_cast<int>(keys - j) : static_cast<int>(kRowsAtOnce);
    Float v = rounded(load(scores + j) * times);  // as in the backward
    if (bias) v = v + load_part(bias + j, here);
    store(scores + j, v);
  }
}

// The largest score of each of up to 16 rows. Scores from `keys` up to the next multiple of 32 become -inf.
DYNABERT_INLINE Float largest_scores(float* scores, int64_t rows, int64_t keys) {
  constexpr int64_t kLane = kLanes<float>;
  const Float none = broadcast(minus_infinity<float>());
  const int64_t stored = round_up(keys, kTileNumbers);
  Float high[kTileSide];
  for (int64_t i = 0; i < kTileSide; ++i) high[i] = none;
  for (int64_t i = 0; i < rows; ++i, scores += kScoreStride) {
    if (stored > keys) {
      const int64_t whole = keys / kLane * kLane;
      if (whole < keys) {
        const __mmask16 past = static_cast<__mmask16>(~first_lanes(static_cast<int>(keys - whole)));
        _mm512_mask_storeu_ps(scores + whole, past, (__m512)none);
      }
      if (stored - keys >= kLane) store(scores + stored - kLane, none);
    }
    Float first = none, second = none;
    for (int64_t j = 0; j < stored; j += 2 * kLane) {
      first = maximum(first, load(scores + j));
      second = maximum(second, load(scores + j + kLane));
    }
    high[i] = maximum(first, second);
  }
  return join_lanes<LargerLanes>(high);
}

// Scores of one row to exponentials in their place, as bfloat16 and times `factors` (or null); their sum.
template <bool kFactors>
DYNABERT_INLINE Float exponentials(float* scores, int64_t stored, Float largest, Float times, const float* factors) {
  constexpr int64_t kLane = kLanes<float>;
  NativeBFloat16* const out = reinterpret_cast<NativeBFloat16*>(scores);
  Float sums = {}, more = {};
#pragma GCC unroll 2
  for (int64_t j = 0; j < stored; j += 2 * kLane) {
    // largest - score times -times: the score may then be read by the difference itself.
    Float p = exp2_nonpositive((largest - load(scores + j)) * times);
    Float q = exp2_nonpositive((largest - load(scores + j + kLane)) * times);
    sums = sums + p;
    more = more + q;
    if constexpr (kFactors) {
      p = p * load(factors + j);
      q = q * load(factors + j + kLane);
    }
    store_pair(out + j, p, q);
  }
  return sums + more;
}

template <class Tiles>
struct TileAttention {
  using S = float;
  static constexpr int64_t kLane = kLanes<float>;

  const AttentionForward& a;
  Tiles& tiles;
  const AttentionSequence& sequence;
  const int64_t head, length, first, queries, size, padded;  // size up to a multiple of 32
  const int64_t stored_rows;
  const BFloat16 *q, *k, *v, *bias;
  Dropout dropout;
  const TileSoftmax softmax;
  BFloat16* rows_of_q;
  float *k_panels, *v_panels, *sums, *scores, *factors, *largest, *total;
  Ahead ahead = {};  // what is asked for beside the softmax, `asks` lines with each row
  int64_t asks = 0;

  TileAttention(const AttentionForward& arguments, Tiles& t, const AttentionSequence& s, int64_t h, int64_t begin,
                int64_t end)
      : a(arguments),
        tiles(t),
        sequence(s),
        head(h),
        length(s.end - s.begin),
        first(begin),
        queries(end - begin),
        size(a.head_size),
        padded(round_up(size, kTileNumbers)),
        stored_rows(round_up(queries, kTileSide)),
        dropout(a.dropout),
        softmax(TileSoftmax::of(a.scale, a.position_bias != nullptr)) {
    q = static_cast<const BFloat16*>(a.qkv) + s.begin * a.qkv_row + h * a.qkv_head;
    k = q + a.qkv_part;
    v = k + a.qkv_part;
    bias = static_cast<const BFloat16*>(a.position_bias);
    if (bias) bias += h * a.bias_head + a.bias_centre;
    dropout.offset += static_cast<uint64_t>(s.group);
    rows_of_q = scratch_of<BFloat16>(kScratchA, static_cast<size_t>(stored_rows * padded));
    k_panels = scratch_of<float>(kScratchB, static_cast<size_t>(kTileKeys * padded));
    v_panels = k_panels + kTileKeys * padded / 2;
    sums = scratch_of<float>(kScratchC, static_cast<size_t>(stored_rows * padded));
    scores = scratch_of<float>(kScratchD, static_cast<size_t>(kTileSpan * kScoreStride + kTileKeys + 2 * stored_rows));
    factors = scores + kTileSpan * kScoreStride;
    largest = factors + kTileKeys;
    total = largest + stored_rows;
    if (dropout.threshold == 0) factors = nullptr;
  }

  // One block of keys: K in panels of 32 keys, V in panels of 32 columns.
  void pack_keys(int64_t key, int64_t keys) {
    const int64_t units = units_of<BFloat16Pairs>(size);
    for (int64_t j = 0; j < keys; j += kTileSpan) {
      float* const panel = k_panels + j * padded / 2;
      const int64_t rows = keys - j < kTileSpan ? keys - j : kTileSpan;
      pack_rows<BFloat16Pairs>(panel, kTileSpan, k + (key + j) * a.qkv_row, a.qkv_row, rows, size);
      clear_units(panel + units * kTileSpan, padded / 2 - units);
    }
    pair_columns(v_panels, kTileKeys / 2, v + key * a.qkv_row, a.qkv_row, keys, size);
  }

  // Scores of up to 16 queries from `row` on to exponentials; the queries' sums become relative to a new largest score.
  void run_softmax(float* lines, int64_t row, int64_t rows, int64_t key, int64_t keys) {
    const int64_t stored = round_up(keys, kTileNumbers);
    if (softmax.scale_first) {
      for (int64_t i = 0; i < rows; ++i) {
        scale_row(lines + i * kScoreStride, keys, softmax.scale, bias ? bias + key - (first + row + i) : nullptr);
      }
    }
    const Float before = load(largest + row), found = largest_scores(lines, rows, keys);
    const Float top = before > found ? before : found;
    // A row that so far has only scores of -inf has nothing to be relative to: -inf - (-inf) would be NaN.
    const Float shift = top == broadcast(minus_infinity<float>()) ? Float{} : top;
    const Float times = broadcast(-softmax.times);
    float shifts[kTileSide];
    store(shifts, shift);
    Float added[kTileSide];
    for (int64_t i = rows; i < kTileSide; ++i) added[i] = Float{};
    for (int64_t i = 0; i < rows; ++i) {
      float* const line = lines + i * kScoreStride;
      for (int64_t ask = 0; ask < asks; ++ask) ahead.ask();
      if (factors) {
        const int64_t place = sequence.begin - sequence.group_begin + first + row + i;
        dropout_factors(factors, key, keys, dropout, static_cast<uint32_t>(place), static_cast<uint32_t>(head));
        added[i] = exponentials<true>(line, stored, broadcast(shifts[i]), times, factors);
      } else {
        added[i] = exponentials<false>(line, stored, broadcast(shifts[i]), times, nullptr);
      }
    }
    const Float correction = exp2_nonpositive((shift - before) * times);
    store(total + row, fma(load(total + row), correction, join_lanes<SummedLanes>(added)));
    store(largest + row, top);
    if (key > 0) correct_sums(row, rows, correction);
  }

  void correct_sums(int64_t row, int64_t rows, Float correction) {
    if (_mm512_cmp_ps_mask((__m512)correction, (__m512)broadcast(1.0f), _CMP_NEQ_UQ) == 0) return;
    float each[kTileSide];
    store(each, correction);
    for (int64_t i = 0; i < rows; ++i) {
      float* const line = sums + (row + i) * padded;
      const Float times = broadcast(each[i]);
      for (int64_t c = 0; c < padded; c += kLane) store(line + c, load(line + c) * times);
    }
  }

  void run_strip(int64_t row, int64_t key, int64_t keys) {
    const int64_t rows = queries - row < kTileSpan ? queries - row : kTileSpan;
    for (int64_t j = 0; j < keys; j += kTileSpan) {
      multiply_tiles(tiles, rows, keys - j, rows_of_q + row * padded, padded * 2, k_panels + j * padded / 2, kTileSpan,
                     padded / kTileNumbers, scores + j, kScoreStride, false);
    }
    for (int64_t i = 0; i < rows; i += kTileSide) {
      run_softmax(scores + i * kScoreStride, row + i, rows - i < kTileSide ? rows - i : kTileSide, key, keys);
    }
    for (int64_t c = 0; c < size; c += kTileSpan) {
      multiply_tiles(tiles, rows, kTileSpan, scores, kScoreStride * 4, v_panels + c * kTileKeys / 2, kTileSpan,
                     round_up(keys, kTileNumbers) / kTileNumbers, sums + row * padded + c, padded, key > 0);
    }
  }

  void store_results() {
    const float factor = softmax.scale_first ? 1.0f : softmax.scale;
    float inverse[kTileSide];
    for (int64_t i = 0; i < queries; ++i) {
      if (i % kTileSide == 0) store(inverse, broadcast(1.0f) / load(total + i));
      const int64_t row = sequence.begin + first + i;
      NativeBFloat16* line = static_cast<NativeBFloat16*>(a.out) + row * a.out_row + head * a.out_head;
      const Float times = broadcast(inverse[i % kTileSide]);
      for (int64_t c = 0; c < size; c += kTileSpan) store_sums(line + c, sums + i * padded + c, times, size - c);
    }
    if (!a.lse) return;
    float* const lse = static_cast<float*>(a.lse) + head * a.lse_head + sequence.begin + first;
    for (int64_t i = 0; i < queries; i += kLane) {
      // Rounded as the backward rounds the scores that it holds against this.
      float each[kLane];
      store(each, rounded(load(largest + i) * broadcast(factor)));
      const int64_t here = queries - i < kLane ? queries - i : kLane;
      for (int64_t lane = 0; lane < here; ++lane) {
        lse[i + lane] = each[lane] + static_cast<float>(__builtin_log(total[i + lane]));
      }
    }
  }

  // Asks for Q, K and V of another head while this one is worked on: of as many rows as fit the second-level cache.
  void ask_for(const AttentionSequence& next, int64_t next_head) {
    constexpr int64_t kMostRows = 512;
    const int64_t all = next.end - next.begin, rows = all < kMostRows ? all : kMostRows;
    const int64_t work = queries * ((length + kTileKeys - 1) / kTileKeys);
    if (a.qkv_part != size) return;
    const BFloat16* const from = static_cast<const BFloat16*>(a.qkv) + next.begin * a.qkv_row + next_head * a.qkv_head;
    ahead = Ahead::of(from, a.qkv_row, rows, 3 * size);
    asks = (ahead.rows * ahead.lines + work - 1) / work;
  }

  void run() {
    for (int64_t i = 0; i < stored_rows; i += kLane) {
      store(largest + i, broadcast(minus_infinity<float>()));
      store(total + i, Float{});
    }
    pad_rows(rows_of_q, stored_rows, padded, q + first * a.qkv_row, a.qkv_row, queries, size);
    for (int64_t key = 0; key < length; key += kTileKeys) {
      const int64_t keys = length - key < kTileKeys ? length - key : kTileKeys;
      pack_keys(key, keys);
      if (factors) {
        for (int64_t j = keys; j < round_up(keys, kTileNumbers); ++j) factors[j] = 0.0f;
      }
      for (int64_t row = 0; row < queries; row += kTileSpan) run_strip(row, key, keys);
    }
    store_results();
  }
};

template <class Tiles>
void tile_attention_tasks(const AttentionForward& a, int64_t begin, int64_t end) {
  Tiles tiles;
  int64_t s = 0;
  for (int64_t task = begin; task < end; ++task) {
    while (s + 1 < a.num_sequences && a.sequences[s + 1].first_task <= task) ++s;
    const AttentionSequence& sequence = a.sequences[s];
    const int64_t length = sequence.end - sequence.begin;
    const int64_t blocks = (length + a.query_block - 1) / a.query_block;
    const int64_t head = (task - sequence.first_task) / blocks, block = (task - sequence.first_task) % blocks;
    const int64_t first = block * a.query_block;
    const int64_t last = length - first < a.query_block ? length : first + a.query_block;
    TileAttention<Tiles> one(a, tiles, sequence, head, first, last);
    if (last == length && task + 1 < end) {
      const NextHead next = next_head(a.sequences, a.num_sequences, s, head, task);
      one.ask_for(*next.sequence, next.head);
    }
    one.run();
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
