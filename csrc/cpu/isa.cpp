#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dynabert::cpu {
namespace {

constexpr int kUnset = -1;
std::atomic<int> chosen{kUnset};

struct TileFeatures {
  bool bfloat16 = false, bytes = false;
};

#if defined(__x86_64__)
bool has_bfloat16_dot() { return __builtin_cpu_supports("avx512bf16"); }
bool has_int8_dot() { return __builtin_cpu_supports("avx512vnni"); }

TileFeatures tile_features() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 1) == 0) return {};
  return {(d >> 22 & 1) != 0, (d >> 25 & 1) != 0};
}

// The kernel gives a process the memory for tile registers when it asks; it may also refuse.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

bool has(Isa isa) {
  switch (isa) {
    case Isa::kAmx: {
      const TileFeatures tiles = tile_features();
      return has(Isa::kAmxEmulated) && tiles.bfloat16 && tiles.bytes && may_use_tiles();
    }
    case Isa::kAmxEmulated:
      return has(Isa::kAvx512) && has_bfloat16_dot() && has_int8_dot();
    case Isa::kAvx512:
      return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    default:
      return true;
  }
}
#else
TileFeatures tile_features() { return {}; }
bool has(Isa isa) { return isa == Isa::kGeneric; }
bool has_bfloat16_dot() { return false; }
bool has_int8_dot() { return false; }
#endif

Isa best() {
  for (Isa isa : {Isa::kAmx, Isa::kAvx512, Isa::kAvx2}) {
    if (has(isa)) return isa;
  }
  return Isa::kGeneric;
}

Isa parse(const std::string& source, const std::string& name) {
  if (name == "auto") return best();
  std::string allowed = "auto";
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAmx, Isa::kAmxEmulated}) {
    if (name == isa_name(isa)) {
      if (has(isa)) return isa;
      if (isa == Isa::kAmx && tile_features().bfloat16 && tile_features().bytes) {
        throw std::invalid_argument(source +
                                    ": this processor has amx, but the system does not let this process use it; "
                                    "leave it at auto, or allow it (Linux 5.16 or later, arch_prctl)");
      }
      throw std::invalid_argument(source + ": this processor has no " + name + "; leave it at auto");
    }
    if (has(isa)) allowed += std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument(source + ": '" + name + "' is no instruction set; allowed: " + allowed);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmxEmulated:
      return "amx-emulated";
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "generic";
  }
}

Isa active_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa == kUnset) {
    const char* forced = std::getenv("DYNABERT_CPU_ISA");
    isa = static_cast<int>(forced != nullptr && *forced != '\0' ? parse("DYNABERT_CPU_ISA", forced) : best());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const std::string& name) { chosen.store(static_cast<int>(parse("set_cpu_isa", name))); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (has(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

std::vector<std::pair<std::string, bool>> processor_features() {
#if defined(__x86_64__)
#define DYNABERT_FEATURE(name, gcc_name)                      \
  {                                                           \
    name, static_cast<bool>(__builtin_cpu_supports(gcc_name)) \
  }
  return {DYNABERT_FEATURE("avx2", "avx2"),
          DYNABERT_FEATURE("fma", "fma"),
          DYNABERT_FEATURE("f16c", "f16c"),
          DYNABERT_FEATURE("avx512f", "avx512f"),
          DYNABERT_FEATURE("avx512bw", "avx512bw"),
          DYNABERT_FEATURE("avx512vl", "avx512vl"),
          DYNABERT_FEATURE("avx512dq", "avx512dq"),
          DYNABERT_FEATURE("avx512_bf16", "avx512bf16"),
          DYNABERT_FEATURE("avx512_vnni", "avx512vnni"),
          {"amx_bf16", tile_features().bfloat16},
          {"amx_int8", tile_features().bytes}};
#undef DYNABERT_FEATURE
#else
  return {{"avx2", false},        {"fma", false},      {"f16c", false},     {"avx512f", false},
          {"avx512bw", false},    {"avx512vl", false}, {"avx512dq", false}, {"avx512_bf16", false},
          {"avx512_vnni", false}, {"amx_bf16", false}, {"amx_int8", false}};
#endif
}

bool use_bfloat16_dot() { return active_isa() >= Isa::kAvx512 && has_bfloat16_dot(); }

bool use_int8_dot() { return active_isa() >= Isa::kAvx512 && has_int8_dot(); }

bool use_tiles() { return active_isa() >= Isa::kAmx; }

}  // namespace dynabert::cpu
