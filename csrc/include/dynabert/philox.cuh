// Counter-based dropout in device code: bit for bit the masks of dynabert_kernels/reference/dropout.py.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Counter (column / 4, row
// inside the group, stream and head, offset plus group), key the seed; a column takes word column % 4.
#pragma once

#include "dynabert/row.cuh"

namespace dynabert {

// Dropout of rows that count from the start of their group. Rows of no group are not dropped.
struct RowDropout {
  const int64_t* state;  // seed, offset; null: nothing is dropped
  const int32_t* rows;   // (num_groups + 1) borders, or null: all rows are group 0
  int num_groups;
  uint32_t stream;     // stream << 12
  uint32_t threshold;  // kept when the word is at least this
  float scale;         // 1 / (1 - p)
};

// What a row's counters are made of.
struct RowCounter {
  uint32_t key[2];
  uint32_t position, stream, offset;
  bool drops;
};

__device__ __forceinline__ RowCounter row_counter(const RowDropout& dropout, int64_t row) {
  RowCounter found = {{0, 0}, 0, dropout.stream, 0, dropout.state != nullptr};
  if (!found.drops) return found;
  const uint64_t seed = static_cast<uint64_t>(dropout.state[0]);
  int group = 0;
  int64_t begin = 0;
  if (dropout.rows != nullptr) {
    // The last group that begins at or before the row: of equal borders the last, so no empty group.
    int beyond = dropout.num_groups + 1;
    while (beyond - group > 1) {
      const int middle = (group + beyond) / 2;
      if (dropout.rows[middle] <= row) {
        group = middle;
      } else {
        beyond = middle;
      }
    }
    found.drops = group < dropout.num_groups;
    begin = dropout.rows[group];
  }
  found.key[0] = static_cast<uint32_t>(seed);
  found.key[1] = static_cast<uint32_t>(seed >> 32);
  found.position = static_cast<uint32_t>(row - begin);
  found.offset = static_cast<uint32_t>(static_cast<uint64_t>(dropout.state[1]) + static_cast<uint64_t>(group));
  return found;
}

// The four words of columns 4 * quad to 4 * quad + 3.
__device__ __forceinline__ void philox(const RowCounter& row, uint32_t quad, uint32_t (&words)[4]) {
  uint32_t key_0 = row.key[0], key_1 = row.key[1];
  words[0] = quad;
  words[1] = row.position;
  words[2] = row.stream;
  words[3] = row.offset;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product_0 = static_cast<uint64_t>(words[0]) * 0xD2511F53u;
    const uint64_t product_1 = static_cast<uint64_t>(words[2]) * 0xCD9E8D57u;
    words[0] = static_cast<uint32_t>(product_1 >> 32) ^ words[1] ^ key_0;
    words[2] = static_cast<uint32_t>(product_0 >> 32) ^ words[3] ^ key_1;
    words[1] = static_cast<uint32_t>(product_1);
    words[3] = static_cast<uint32_t>(product_0);
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
}

// values *= 0 or scale, by column. Without packs every element draws its quad of words alone.
template <int kThreads, int kVector, int kPacks>
__device__ __forceinline__ void drop_row(float (&values)[kPacks * kVector], const RowDropout& dropout,
                                         const RowCounter& row, int thread) {
  static_assert(kVector == 1 || kVector % 4 == 0, "a pack is whole quads");
  if (!row.drops) return;
  uint32_t words[4];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = pack_column<kThreads, kVector>(p, thread);
    if constexpr (kVector == 1) {
      philox(row, static_cast<uint32_t>(column / 4), words);
      // Chosen without an index: an indexed array would not stay in registers.
      const uint32_t low = column % 2 == 0 ? words[0] : words[1], high = column % 2 == 0 ? words[2] : words[3];
      values[p] *= (column % 4 < 2 ? low : high) >= dropout.threshold ? dropout.scale : 0.0f;
    } else {
#pragma unroll
      for (int i = 0; i < kVector; i += 4) {
        philox(row, static_cast<uint32_t>((column + i) / 4), words);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          values[p * kVector + i + w] *= words[w] >= dropout.threshold ? dropout.scale : 0.0f;
        }
      }
    }
  }
}

}  // namespace dynabert
