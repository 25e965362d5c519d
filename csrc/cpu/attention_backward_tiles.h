// The backward of attention in bfloat16 through tile registers. A part of attention_backward_kernels.h, for AVX-512
// only.
//
// The same task and the same blocks as without tiles, but the scores lie turned: a row is a key, its lanes are queries.
// What belongs to a query, its lse and delta, is then a lane of a register, and f p and ds as they are written are the
// left side of what they are summed into:
//   scores = K Q^T         left: rows of K and of V; right: q and dout in units along the head's size
//   dout . v = V dout^T
//   dv += (f p) dout       left: rows of f p and of ds, 128 queries each; right: dout and q in pairs of queries
//   dk += ds q
//   dq^T += K^T ds         left: K turned, in pairs of keys; right: ds in pairs of keys
// Queries and keys past the end have zeros for q, k, v and dout. What an infinite key makes of such a query, 0 times
// infinity, is a NaN that would reach sums over queries: so their f p and ds are set to 0.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504f;
// From one row of scores to the next, and from one row of f p: one line more than a power of two, so that rows do not
// share a set of the cache.
constexpr int64_t kScoreStride = kTileSpan + kTileSide;
constexpr int64_t kWeightStride = kQueries + kTileNumbers;

// Numbers in the reverse order.
DYNABERT_INLINE Float reversed(Float v) {
  const __m512i order = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return (Float)_mm512_permutexvar_ps(order, (__m512)v);
}

// Lanes that are not `used` become 0.
DYNABERT_INLINE Float only(__mmask16 used, Float v) { return (Float)_mm512_maskz_mov_ps(used, (__m512)v); }

// Gradients of the scores of one key after the other and 32 queries, summed by distance. Of the distances that one key
// has, the next one has all but the smallest: the sums move on by a lane, and memory is touched once for each distance.
struct DistanceSums {
  float* sums;       // of distance 0
  int64_t distance;  // of lane 0
  int64_t smallest;  // below it there are no queries, and nothing is summed
  Float low = {}, high = {};

  // Of queries 0 to 15 and 16 to 31.
  DYNABERT_INLINE void add(Float first, Float second) {
    low = low + reversed(second);
    high = high + reversed(first);
    if (distance >= smallest) sums[distance] += low[0];
    const __m512i a = bit_cast<__m512i>(low), b = bit_cast<__m512i>(high);
    low = bit_cast<Float>(_mm512_alignr_epi32(b, a, 1));
    high = bit_cast<Float>(_mm512_maskz_alignr_epi32(0x7fff, b, b, 1));
    ++distance;
  }
  void finish() {
    float rest[kTileSpan];
    store(rest, low);
    store(rest + kTileSide, high);
    for (int64_t i = 0; i + 1 < kTileSpan; ++i) {
      if (distance + i >= smallest) sums[distance + i] += rest[i];
    }
  }
};

template <class Tiles>
struct TileBackwardTask {
  static constexpr int64_t kLane = kLanes<float>;

  const AttentionBackward& a;
  Tiles& tiles;
  const AttentionSequence& sequence;
  const int64_t head, length, size, padded;
  const int64_t stored, dq_stride;  // the queries, up to a multiple of 32
  const BFloat16 *q, *k, *v, *dout, *out, *bias;
  const float* lse;
  NativeBFloat16* dq;
  Ahead ahead[3] = {};
  int64_t asks[3] = {};  // lines of each for two keys of a strip
  float* sums;
  Dropout dropout;
  float *q_turned, *dout_turned;         // of all queries: [32 queries][unit of the size][query]
  float *q_pairs, *dout_pairs;           // of all queries: [32 columns][pair of queries][column]
  BFloat16 *k_rows, *v_rows;             // of a block of keys
  float* k_turned;                       // [column][pair of keys]
  float *dq_turned, *dk_sums, *dv_sums;  // dq_turned: [column][query]
  float *lse_of, *delta;                 // of all queries
  float* bias_of;                        // of each distance, the other way round; or null
  float *scores, *score_gradients;       // [key][32 queries]
  float* factors;                        // the same, or null
  NativeBFloat16 *weights, *gradients;   // f p and ds: [key][128 queries]
  float* gradient_pairs;                 // ds of 32 queries: [pair of keys][query]

  TileBackwardTask(const AttentionBackward& arguments, Tiles& t, const AttentionSequence& s, int64_t h)
      : a(arguments),
        tiles(t),
        sequence(s),
        head(h),
        length(s.end - s.begin),
        size(a.head_size),
        padded(round_up(size, kTileNumbers)),
        stored(round_up(length, kTileSpan)),
        dq_stride(stored + kTileSide),
        dropout(a.dropout) {
    q = static_cast<const BFloat16*>(a.qkv) + s.begin * a.qkv_row + h * a.qkv_head;
    k = q + a.qkv_part;
    v = k + a.qkv_part;
    dout = static_cast<const BFloat16*>(a.dout) + s.begin * a.dout_row + h * a.dout_head;
    out = static_cast<const BFloat16*>(a.out) + s.begin * a.out_row + h * a.out_head;
    bias = static_cast<const BFloat16*>(a.position_bias);
    if (bias) bias += h * a.bias_head + a.bias_centre;
    lse = static_cast<const float*>(a.lse) + h * a.lse_head + s.begin;
    dq = static_cast<NativeBFloat16*>(a.dqkv) + s.begin * a.dqkv_row + h * a.dqkv_head;
    // The sum of distance 0.
    sums = a.sums ? static_cast<float*>(a.sums) + s.first_sum + h * sums_of(length) + length - 1 : nullptr;
    dropout.offset += static_cast<uint64_t>(s.group);
    const int64_t keys = length < kKeys ? stored : kKeys;
    const int64_t numbers = 2 * stored * padded + 3 * keys * padded + padded * kKeys / 2 + padded * dq_stride +
                            3 * keys * kScoreStride + keys * kWeightStride + keys * kTileSide + 4 * stored +
                            2 * kTileSpan + 32 * 16;
    Workspace<float> space = {scratch_of<float>(kScratchA, static_cast<size_t>(numbers))};
    q_turned = space.take(stored * padded / 2);
    dout_turned = space.take(stored * padded / 2);
    q_pairs = space.take(stored * padded / 2);
    dout_pairs = space.take(stored * padded / 2);
    k_rows = reinterpret_cast<BFloat16*>(space.take(keys * padded / 2));
    v_rows = reinterpret_cast<BFloat16*>(space.take(keys * padded / 2));
    k_turned = space.take(padded * kKeys / 2);
    dq_turned = space.take(padded * dq_stride);
    dk_sums = space.take(keys * padded);
    dv_sums = space.take(keys * padded);
    lse_of = space.take(stored);
    delta = space.take(stored);
    scores = space.take(keys * kScoreStride);
    score_gradients = space.take(keys * kScoreStride);
    factors = dropout.threshold != 0 ? space.take(keys * kScoreStride) : nullptr;
    weights = reinterpret_cast<NativeBFloat16*>(space.take(keys * kWeightStride / 2));
    gradients = reinterpret_cast<NativeBFloat16*>(space.take(keys * kWeightStride / 2));
    gradient_pairs = space.take(keys / 2 * kTileSpan);
    bias_of = bias ? space.take(2 * stored + 2 * kTileSpan) : nullptr;
  }

  void pack_queries() {
    const int64_t units = units_of<BFloat16Pairs>(size);
    for (int64_t i = 0; i < length; i += kTileSpan) {
      const int64_t rows = length - i < kTileSpan ? length - i : kTileSpan, at = i * padded / 2;
      pack_rows<BFloat16Pairs>(q_turned + at, kTileSpan, q + i * a.qkv_row, a.qkv_row, rows, size);
      pack_rows<BFloat16Pairs>(dout_turned + at, kTileSpan, dout + i * a.dout_row, a.dout_row, rows, size);
      clear_units(q_turned + at + units * kTileSpan, padded / 2 - units);
      clear_units(dout_turned + at + units * kTileSpan, padded / 2 - units);
    }
    pair_columns(q_pairs, stored / 2, q, a.qkv_row, length, size);
    pair_columns(dout_pairs, stored / 2, dout, a.dout_row, length, size);
    for (int64_t i = 0; i < length; ++i) {
      lse_of[i] = lse[i];
      delta[i] = dot_row(dout + i * a.dout_row, out + i * a.out_row, size);
    }
    for (int64_t i = length; i < stored; ++i) {
      lse_of[i] = static_cast<float>(__builtin_inf());
      delta[i] = 0.0f;
    }
    if (!bias) return;
    // bias_of[i]: of distance length - 1 - i. Beyond the ends 0.
    for (int64_t i = 0; i < 2 * stored + 2 * kTileSpan; ++i) {
      const uint32_t bits = i < 2 * length - 1 ? static_cast<uint32_t>(bias[length - 1 - i].bits) << 16 : 0;
      bias_of[i] = bit_cast<float>(bits);
    }
  }

  void pack_keys(int64_t key, int64_t keys) {
    const BFloat16* const from = k + key * a.qkv_row;
    const int64_t rows = round_up(keys, kTileSide), pairs = round_up(keys, kTileNumbers) / 2;
    pad_rows(k_rows, rows, padded, from, a.qkv_row, keys, size);
    pad_rows(v_rows, rows, padded, v + key * a.qkv_row, a.qkv_row, keys, size);
    // 16 pairs of keys by 16 columns at a time.
    for (int64_t pair = 0; pair < pairs; pair += kTileUnits) {
      for (int64_t c = 0; c < padded; c += kTileSide) {
        Float square[kTileSide];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTileSide; ++i) {
          const int64_t row = 2 * (pair + i);
          const BFloat16* const line = k_rows + row * padded + c;
          square[i] = row >= keys       ? Float{}
                      : row + 1 >= keys ? BFloat16Pairs::down(line, nullptr)
                                        : BFloat16Pairs::down(line, line + padded);
        }
        transpose_square(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTileSide; ++i) store(k_turned + (c + i) * (kKeys / 2) + pair, square[i]);
      }
    }
  }

  // The dropout factors of 32 queries from `row` on, turned as the scores are.
  void draw(int64_t key, int64_t keys, int64_t row) {
    const int64_t here = length - row < kTileSpan ? length - row : kTileSpan;
    for (int64_t i = 0; i < here; i += kTileSide) {
      float lines[kTileSide][kKeys];
      for (int64_t lane = 0; lane < kTileSide; ++lane) {
        if (i + lane >= here) {
          for (int64_t j = 0; j < keys; ++j) lines[lane][j] = 0.0f;
          continue;
        }
        const int64_t place = sequence.begin - sequence.group_begin + row + i + lane;
        dropout_factors(lines[lane], key, keys, dropout, static_cast<uint32_t>(place), static_cast<uint32_t>(head));
      }
      for (int64_t j = 0; j < keys; j += kTileSide) {
        Float square[kTileSide];
#pragma GCC unroll 16
        for (int64_t lane = 0; lane < kTileSide; ++lane) square[lane] = load(lines[lane] + j);
        transpose_square(square);
#pragma GCC unroll 16
        for (int64_t lane = 0; lane < kTileSide; ++lane) store(factors + (j + lane) * kScoreStride + i, square[lane]);
      }
    }
    if (here > kTileSide) return;
    for (int64_t j = 0; j < keys; ++j) store(factors + j * kScoreStride + kTileSide, Float{});
  }

  // Asks for what another head reads while this one is worked on: of as many rows as fit the second-level cache.
  void ask_for(const AttentionSequence& next, int64_t next_head) {
    constexpr int64_t kMostRows = 512;
    const int64_t all = next.end - next.begin, rows = all < kMostRows ? all : kMostRows;
    const int64_t work = stored / kTileSpan * (length / 2) + 1;
    if (a.qkv_part != size) return;
    const auto of = [&](const void* base, int64_t row, int64_t head_stride, int64_t columns) {
      return Ahead::of(static_cast<const BFloat16*>(base) + next.begin * row + next_head * head_stride, row, rows,
                       columns);
    };
    ahead[0] = of(a.qkv, a.qkv_row, a.qkv_head, 3 * size);
    ahead[1] = of(a.dout, a.dout_row, a.dout_head, size);
    ahead[2] = of(a.out, a.out_row, a.out_head, size);
    for (int i = 0; i < 3; ++i) asks[i] = (ahead[i].rows * ahead[i].lines + work - 1) / work;
  }
  DYNABERT_INLINE void ask() {
    for (int i = 0; i < 3; ++i) {
      for (int64_t lines = 0; lines < asks[i]; ++lines) ahead[i].ask();
    }
  }

  // f p and ds of one key and 16 queries; 0 where `used` is not set.
  struct Pair {
    Float weight, gradient;
  };
  template <bool kBias, bool kFactors>
  DYNABERT_INLINE Pair gradient_of(int64_t at, const float* bias_at, Float lse_here, Float delta_here,
                                   __mmask16 used) const {
    // Rounded as in the forward, whose lse it is held against.
    Float score = rounded(load(scores + at) * broadcast(static_cast<float>(a.scale)));
    if constexpr (kBias) score = score + load(bias_at);
    // No probability is above 1, whatever rounding says of very large scores.
    const Float below = minimum(Float{}, score - lse_here);
    const Float p = only(used, exp2_nonpositive(below * broadcast(kLog2E)));
    Float dp = load(score_gradients + at), dropped = p;
    if constexpr (kFactors) {
      const Float f = load(factors + at);
      dropped = p * f;
      dp = rounded(dp * f);
    }
    return {dropped, only(used, p * (dp - delta_here))};
  }

  // Scores and dout . v of 32 queries from `row` on to f p and ds. `place`: their column among the weights.
  template <bool kBias, bool kFactors>
  void weigh(int64_t key, int64_t keys, int64_t row, int64_t place) {
    const Float first_lse = load(lse_of + row), second_lse = load(lse_of + row + kLane);
    const Float first_delta = load(delta + row), second_delta = load(delta + row + kLane);
    const int64_t here = length - row < kTileSpan ? length - row : kTileSpan;
    const uint32_t queries = static_cast<uint32_t>((uint64_t{1} << here) - 1);
    const __mmask16 first_used = static_cast<__mmask16>(queries), second_used = static_cast<__mmask16>(queries >> 16);
    DistanceSums by_distance = {sums, key - row - (kTileSpan - 1), 1 - length};
    const auto one = [&](int64_t j) __attribute__((always_inline)) {
      const int64_t at = j * kScoreStride;
      const float* const bias_at = kBias ? bias_of + length - 1 - (key + j) + row : nullptr;
      const Pair first = gradient_of<kBias, kFactors>(at, bias_at, first_lse, first_delta, first_used);
      const Pair second = gradient_of<kBias, kFactors>(at + kLane, kBias ? bias_at + kLane : nullptr, second_lse,
                                                       second_delta, second_used);
      if (sums) by_distance.add(first.gradient, second.gradient);
      store_pair(weights + j * kWeightStride + place, first.weight, second.weight);
      const Int gradient = to_native_bfloat16(first.gradient, second.gradient);
      __builtin_memcpy(gradients + j * kWeightStride + place, &gradient, sizeof gradient);
      return gradient;
    };
    for (int64_t j = 0; j + 1 < keys; j += 2) {
      const Int gradient = one(j), next = one(j + 1);
      store_column_pairs(gradient_pairs + j / 2 * kTileSpan, (__m512i)gradient, (__m512i)next);
      ask();
    }
    if (keys % 2 != 0) {
      store_column_pairs(gradient_pairs + keys / 2 * kTileSpan, (__m512i)one(keys - 1), _mm512_setzero_si512());
    }
    if (sums) by_distance.finish();
    const int64_t pairs = (keys + 1) / 2;
    clear_units(gradient_pairs + pairs * kTileSpan, round_up(keys, kTileNumbers) / 2 - pairs);
  }

  void strip(int64_t key, int64_t keys, int64_t row, int64_t place) {
    const int64_t steps = padded / kTileNumbers, at = row * padded / 2;
    for (int64_t j = 0; j < keys; j += kTileSpan) {
      multiply_tiles(tiles, keys - j, kTileSpan, k_rows + j * padded, padded * 2, q_turned + at, kTileSpan, steps,
                     scores + j * kScoreStride, kScoreStride, false);
      multiply_tiles(tiles, keys - j, kTileSpan, v_rows + j * padded, padded * 2, dout_turned + at, kTileSpan, steps,
                     score_gradients + j * kScoreStride, kScoreStride, false);
    }
    if (factors) {
      draw(key, keys, row);
      bias ? weigh<true, true>(key, keys, row, place) : weigh<false, true>(key, keys, row, place);
    } else {
      bias ? weigh<true, false>(key, keys, row, place) : weigh<false, false>(key, keys, row, place);
    }
    for (int64_t c = 0; c < size; c += kTileSpan) {
      multiply_tiles(tiles, size - c, kTileSpan, k_turned + c * (kKeys / 2), kKeys * 2, gradient_pairs, kTileSpan,
                     round_up(keys, kTileNumbers) / kTileNumbers, dq_turned + c * dq_stride + row, dq_stride, key > 0);
    }
  }

  void add_keys(int64_t keys, int64_t first, int64_t queries) {
    const int64_t steps = round_up(queries, kTileNumbers) / kTileNumbers;
    for (int64_t j = 0; j < keys; j += kTileSpan) {
      for (int64_t c = 0; c < size; c += kTileSpan) {
        const int64_t from = c * stored / 2 + first / 2 * kTileSpan, into = j * padded + c;
        multiply_tiles(tiles, keys - j, kTileSpan, weights + j * kWeightStride, kWeightStride * 2, dout_pairs + from,
                       kTileSpan, steps, dv_sums + into, padded, first > 0);
        multiply_tiles(tiles, keys - j, kTileSpan, gradients + j * kWeightStride, kWeightStride * 2, q_pairs + from,
                       kTileSpan, steps, dk_sums + into, padded, first > 0);
      }
    }
  }

  void store_keys(NativeBFloat16* to, const float* from, int64_t keys, float scale) {
    const Float times = broadcast(scale);
    for (int64_t j = 0; j < keys; ++j, to += a.dqkv_row, from += padded) {
      for (int64_t c = 0; c < size; c += kTileSpan) store_sums(to + c, from + c, times, size - c);
    }
  }

  void store_queries() {
    const Float scale = broadcast(static_cast<float>(a.scale));
    for (int64_t row = 0; row < stored; row += kTileSide) {
      for (int64_t c = 0; c < size; c += kTileSide) {
        Float square[kTileSide];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTileSide; ++i) square[i] = load(dq_turned + (c + i) * dq_stride + row);
        transpose_square(square);
        const int here = size - c < kLane ? static_cast<int>(size - c) : static_cast<int>(kLane);
        for (int64_t i = 0; i < kTileSide; ++i) {
          const int64_t query = row / kTileSpan * kTileSpan + number_in_column(row % kTileSpan + i);
          if (query < length) store_part(dq + query * a.dqkv_row + c, square[i] * scale, here);
        }
      }
    }
  }

  void run() {
    pack_queries();
    if (sums) {
      for (int64_t i = 0; i < sums_of(length); ++i) sums[i + 1 - length] = 0.0f;
    }
    for (int64_t key = 0; key < length; key += kKeys) {
      const int64_t keys = length - key < kKeys ? length - key : kKeys;
      pack_keys(key, keys);
      for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t queries = length - first < kQueries ? length - first : kQueries;
        for (int64_t i = 0; i < queries; i += kTileSpan) strip(key, keys, first + i, i);
        add_keys(keys, first, queries);
      }
      NativeBFloat16* const dk = dq + a.dqkv_part + key * a.dqkv_row;
      store_keys(dk, dk_sums, keys, static_cast<float>(a.scale));
      store_keys(dk + a.dqkv_part, dv_sums, keys, 1.0f);
    }
    store_queries();
  }
};

template <class Tiles>
void tile_backward_tasks(const AttentionBackward& a, int64_t begin, int64_t end) {
  Tiles tiles;
  int64_t s = 0;
  for (int64_t task = begin; task < end; ++task) {
    while (s + 1 < a.num_sequences && a.sequences[s + 1].first_task <= task) ++s;
    const int64_t head = task - a.sequences[s].first_task;
    TileBackwardTask<Tiles> one(a, tiles, a.sequences[s], head);
    if (task + 1 < end) {
      const NextHead next = next_head(a.sequences, a.num_sequences, s, head, task);
      one.ask_for(*next.sequence, next.head);
    }
    one.run();
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
