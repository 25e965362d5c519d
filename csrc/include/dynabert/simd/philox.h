// Counter-based dropout: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Counter (column / 4, row inside the group, stream and head, offset plus group), key the seed; a column takes word
// column % 4. What is kept depends on the place alone. Compiled once for each instruction set: no include guard.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// factors[i] = 0 or dropout.scale for columns first to first + count - 1; `first` is a multiple of 4.
template <class S>
void dropout_factors(S* factors, int64_t first, int64_t count, const Dropout& dropout, uint32_t row, uint32_t head) {
  constexpr int kBlocks = 16;  // counters at a time, so that the loops over them become vector code
  const S scale = static_cast<S>(dropout.scale);
  const uint32_t counter_2 = dropout.stream | head;
  const uint32_t counter_3 = static_cast<uint32_t>(dropout.offset);
  for (int64_t done = 0; done < count; done += 4 * kBlocks) {
    uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
    for (int i = 0; i < kBlocks; ++i) {
      c0[i] = static_cast<uint32_t>((first + done) / 4 + i);
      c1[i] = row;
      c2[i] = counter_2;
      c3[i] = counter_3;
    }
    uint32_t key_0 = static_cast<uint32_t>(dropout.seed);
    uint32_t key_1 = static_cast<uint32_t>(dropout.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < kBlocks; ++i) {
        const uint64_t product_0 = static_cast<uint64_t>(c0[i]) * 0xD2511F53u;
        const uint64_t product_1 = static_cast<uint64_t>(c2[i]) * 0xCD9E8D57u;
        c0[i] = static_cast<uint32_t>(product_1 >> 32) ^ c1[i] ^ key_0;
        c2[i] = static_cast<uint32_t>(product_0 >> 32) ^ c3[i] ^ key_1;
        c1[i] = static_cast<uint32_t>(product_1);
        c3[i] = static_cast<uint32_t>(product_0);
      }
      key_0 += 0x9E3779B9u;
      key_1 += 0xBB67AE85u;
    }
    S block[4 * kBlocks];
    for (int i = 0; i < kBlocks; ++i) {
      block[4 * i] = c0[i] >= dropout.threshold ? scale : S(0);
      block[4 * i + 1] = c1[i] >= dropout.threshold ? scale : S(0);
      block[4 * i + 2] = c2[i] >= dropout.threshold ? scale : S(0);
      block[4 * i + 3] = c3[i] >= dropout.threshold ? scale : S(0);
    }
    const int64_t take = count - done < 4 * kBlocks ? count - done : 4 * kBlocks;
    __builtin_memcpy(factors + done, block, static_cast<size_t>(take) * sizeof(S));
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
