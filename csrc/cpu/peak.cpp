#include "cpu/peak.h"

#include "cpu/isa.h"

namespace dynabert::cpu {

#if defined(__x86_64__)
namespace {

// Twelve sums are enough to hide an instruction's latency (4 to 6 cycles, two a cycle at the best), and are what the
// tiles use at the least. As assembler: a compiler would drop sums that nobody reads.
#define DYNABERT_TWELVE(instruction, r)                                                                               \
  instruction " %%" r "12, %%" r "13, %%" r "0\n" instruction " %%" r "12, %%" r "13, %%" r "1\n" instruction " %%" r \
              "12, %%" r "13, %%" r "2\n" instruction " %%" r "12, %%" r "13, %%" r "3\n" instruction " %%" r         \
              "12, %%" r "13, %%" r "4\n" instruction " %%" r "12, %%" r "13, %%" r "5\n" instruction " %%" r         \
              "12, %%" r "13, %%" r "6\n" instruction " %%" r "12, %%" r "13, %%" r "7\n" instruction " %%" r         \
              "12, %%" r "13, %%" r "8\n" instruction " %%" r "12, %%" r "13, %%" r "9\n" instruction " %%" r         \
              "12, %%" r "13, %%" r "10\n" instruction " %%" r "12, %%" r "13, %%" r "11\n"
// The factors are 0, so that no sum becomes large or denormal. vxorps of the lower half clears the whole register.
#define DYNABERT_TURNS(instruction, r)                                                                             \
  asm volatile(                                                                                                    \
      "vxorps %%xmm12, %%xmm12, %%xmm12\nvxorps %%xmm13, %%xmm13, %%xmm13\n"                                       \
      "1:\n" DYNABERT_TWELVE(instruction, r) "dec %0\njnz 1b\nvzeroupper\n"                                        \
      : "+r"(turns)                                                                                                \
      :                                                                                                            \
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
        "xmm13", "cc")

}  // namespace

// In namespaces by instruction set, as all code that only some processors can run: a test reads the library for others.
namespace avx2 {
namespace {
[[gnu::noinline]] void turn_float32(int64_t turns) { DYNABERT_TURNS("vfmadd231ps", "ymm"); }
}  // namespace
}  // namespace avx2
namespace avx512 {
namespace {
[[gnu::noinline]] void turn_float32(int64_t turns) { DYNABERT_TURNS("vfmadd231ps", "zmm"); }
[[gnu::noinline]] void turn_bfloat16(int64_t turns) { DYNABERT_TURNS("vdpbf16ps", "zmm"); }
[[gnu::noinline]] void turn_int8(int64_t turns) { DYNABERT_TURNS("vpdpbusd", "zmm"); }

// Six tiles of sums, twice each turn: one takes 52 cycles, and the next one starts after 16.
#define DYNABERT_SIX_TILES(instruction)                                                       \
  instruction " %%tmm7, %%tmm6, %%tmm0\n" instruction " %%tmm7, %%tmm6, %%tmm1\n" instruction \
              " %%tmm7, %%tmm6, %%tmm2\n" instruction " %%tmm7, %%tmm6, %%tmm3\n" instruction \
              " %%tmm7, %%tmm6, %%tmm4\n" instruction " %%tmm7, %%tmm6, %%tmm5\n"
// Setting the tiles up clears them.
#define DYNABERT_TILE_TURNS(instruction)                                           \
  struct alignas(64) {                                                             \
    uint8_t palette = 1, first_row = 0, unused[14] = {};                           \
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};                         \
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};                           \
  } const shape;                                                                   \
  asm volatile("ldtilecfg %1\n1:\n" DYNABERT_SIX_TILES(instruction)                \
                   DYNABERT_SIX_TILES(instruction) "dec %0\njnz 1b\ntilerelease\n" \
               : "+r"(turns)                                                       \
               : "m"(shape)                                                        \
               : "cc")
[[gnu::noinline]] void turn_bfloat16_tiles(int64_t turns) { DYNABERT_TILE_TURNS("tdpbf16ps"); }
[[gnu::noinline]] void turn_int8_tiles(int64_t turns) { DYNABERT_TILE_TURNS("tdpbusd"); }
}  // namespace
}  // namespace avx512

int64_t run_at_peak(Products products, int64_t turns) {
  if (turns < 1 || active_isa() == Isa::kGeneric) return 0;
  const bool wide = active_isa() >= Isa::kAvx512;
  const int64_t sums = 12 * turns;
  if (products == Products::kFloat32) {
    wide ? avx512::turn_float32(turns) : avx2::turn_float32(turns);
    return sums * (wide ? 16 : 8);
  }
  if (products == Products::kBFloat16 && active_isa() == Isa::kAmx) {
    avx512::turn_bfloat16_tiles(turns);
    return sums * 16 * 16 * 32;
  }
  if (products == Products::kInt8 && active_isa() == Isa::kAmx) {
    avx512::turn_int8_tiles(turns);
    return sums * 16 * 16 * 64;
  }
  if (products == Products::kBFloat16 && use_bfloat16_dot()) {
    avx512::turn_bfloat16(turns);
    return sums * 32;
  }
  if (products == Products::kInt8 && use_int8_dot()) {
    avx512::turn_int8(turns);
    return sums * 64;
  }
  return 0;
}
#else
int64_t run_at_peak(Products, int64_t) { return 0; }
#endif

}  // namespace dynabert::cpu
