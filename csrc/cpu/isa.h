// Which instruction set the CPU kernels use. Chosen once from what the processor has, or forced.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dynabert::cpu {

// The last two are avx512 with tile registers for products of bfloat16 and of bytes: the processor's (AMX), or an
// emulation in memory, for tests.
enum class Isa : int32_t { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3, kAmxEmulated = 4 };

// The instruction set in use. The first call reads DYNABERT_CPU_ISA and throws std::invalid_argument on a bad value.
Isa active_isa();

// "generic", "avx2", "avx512", "amx", "amx-emulated", or "auto" for the best one, which is never the emulation. Throws
// std::invalid_argument on another name, and on one that this processor or this build does not have. Not meant to be
// called while ops run.
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

// Names of the sets that can be chosen here, plainest first; without the emulation.
std::vector<std::string> available_isas();

// What the processor has, as detected at run time.
std::vector<std::pair<std::string, bool>> processor_features();

// Whether the bfloat16 dot product instruction is there and the avx512 kernels are in use, with tiles or without.
bool use_bfloat16_dot();

// The same for the dot product of bytes.
bool use_int8_dot();

// Whether products of bfloat16 and of bytes go through tile registers.
bool use_tiles();

// The tables of functions that foreach_isa.h compiled, and the one for the instruction set in use.
template <class Table>
struct PerIsa {
  const Table* tables[3];

  const Table& chosen() const {
    const int isa = static_cast<int>(active_isa());
    return *tables[isa < 2 ? isa : 2];
  }
};

}  // namespace dynabert::cpu

#if defined(__x86_64__)
#define DYNABERT_PER_ISA(table)                     \
  {                                                 \
    {                                               \
      &generic::table, &avx2::table, &avx512::table \
    }                                               \
  }
#else
#define DYNABERT_PER_ISA(table)         \
  {                                     \
    {                                   \
      &generic::table, nullptr, nullptr \
    }                                   \
  }
#endif
