// Counter-based dropout: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Counter (column / 4, row inside the group, stream and head, offset plus group), key the seed; a column takes word
// column % 4. What is kept depends on the place alone. Compiled once for each instruction set: no include guard; after
// vector.h.
//
// A word has a lane of 64 bits, of which the upper half is whatever a product left there: the products read the lower
// half alone, so that nothing has to be masked or moved between lanes until the ten rounds are over.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

using ULong = uint64_t __attribute__((vector_size(kVectorBytes)));
constexpr int kCounters = kVectorBytes / 8;  // of a register; each gives four words

DYNABERT_INLINE ULong in_all_lanes(uint64_t x) { return x - ULong{}; }

// The products of the lanes' lower halves.
DYNABERT_INLINE ULong multiply_low(ULong a, ULong b) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (ULong)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  return (ULong)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Lanes of a and b in turns: those of the first half of both, and those of the second.
DYNABERT_INLINE void interleave(ULong a, ULong b, ULong& first, ULong& second) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  first = (ULong)_mm512_permutex2var_epi64((__m512i)a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), (__m512i)b);
  second = (ULong)_mm512_permutex2var_epi64((__m512i)a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), (__m512i)b);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  const __m256i even = _mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
  const __m256i odd = _mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
  first = (ULong)_mm256_permute2x128_si256(even, odd, 0x20);
  second = (ULong)_mm256_permute2x128_si256(even, odd, 0x31);
#else
  first = ULong{a[0], b[0]};
  second = ULong{a[1], b[1]};
#endif
}

// factors[i] = 0 or dropout.scale for the 4 * kCounters * kVectors columns of as many counters. Several registers at a
// time: each round waits for its products.
template <int kVectors, class S>
DYNABERT_INLINE void draw_factors(S* factors, uint32_t counter, const Dropout& dropout, uint32_t row, uint32_t head) {
  ULong c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    for (int i = 0; i < kCounters; ++i) c0[v][i] = counter + static_cast<uint32_t>(v * kCounters + i);
    c1[v] = in_all_lanes(row);
    c2[v] = in_all_lanes(dropout.stream | head);
    c3[v] = in_all_lanes(static_cast<uint32_t>(dropout.offset));
  }
  const ULong multiplier_0 = in_all_lanes(0xD2511F53u), multiplier_1 = in_all_lanes(0xCD9E8D57u);
  uint32_t key_0 = static_cast<uint32_t>(dropout.seed);
  uint32_t key_1 = static_cast<uint32_t>(dropout.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const ULong first_key = in_all_lanes(key_0), second_key = in_all_lanes(key_1);
    for (int v = 0; v < kVectors; ++v) {
      const ULong product_0 = multiply_low(c0[v], multiplier_0);
      const ULong product_1 = multiply_low(c2[v], multiplier_1);
      c0[v] = (product_1 >> 32) ^ c1[v] ^ first_key;
      c2[v] = (product_0 >> 32) ^ c3[v] ^ second_key;
      c1[v] = product_1;
      c3[v] = product_0;
    }
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  for (int v = 0; v < kVectors; ++v) {
    const ULong low = (c0[v] & 0xFFFFFFFFu) | (c1[v] << 32);
    const ULong high = (c2[v] & 0xFFFFFFFFu) | (c3[v] << 32);
    ULong words[2];
    interleave(low, high, words[0], words[1]);
    S* const to = factors + 4 * kCounters * v;
    if constexpr (sizeof(S) == sizeof(float)) {
      const UInt threshold = dropout.threshold - UInt{};
      const UInt scale = bit_cast<UInt>(broadcast(static_cast<float>(dropout.scale)));
      for (int half = 0; half < 2; ++half) {
        const UInt kept = (UInt)((UInt)words[half] >= threshold) & scale;
        __builtin_memcpy(to + 2 * kCounters * half, &kept, sizeof kept);
      }
    } else {
      uint32_t each[4 * kCounters];
      __builtin_memcpy(each, words, sizeof each);
      for (int i = 0; i < 4 * kCounters; ++i) to[i] = each[i] >= dropout.threshold ? S(dropout.scale) : S(0);
    }
  }
}

// factors[i] = 0 or dropout.scale for columns first to first + count - 1; `first` is a multiple of 4.
template <class S>
void dropout_factors(S* factors, int64_t first, int64_t count, const Dropout& dropout, uint32_t row, uint32_t head) {
  constexpr int kAtOnce = 4, kColumns = 4 * kCounters;
  for (; count >= kAtOnce * kColumns; count -= kAtOnce * kColumns) {
    draw_factors<kAtOnce>(factors, static_cast<uint32_t>(first / 4), dropout, row, head);
    factors += kAtOnce * kColumns;
    first += kAtOnce * kColumns;
  }
  if (count <= 0) return;
  S rest[kAtOnce * kColumns];  // no more registers than are needed: keys of a short text are few
  const uint32_t counter = static_cast<uint32_t>(first / 4);
  if (count <= kColumns) {
    draw_factors<1>(rest, counter, dropout, row, head);
  } else if (count <= 2 * kColumns) {
    draw_factors<2>(rest, counter, dropout, row, head);
  } else {
    draw_factors<kAtOnce>(rest, counter, dropout, row, head);
  }
  __builtin_memcpy(factors, rest, static_cast<size_t>(count) * sizeof(S));
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
