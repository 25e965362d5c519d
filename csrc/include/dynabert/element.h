// Element types as the CPU kernels see them: storage only, arithmetic is float32 (float64 for float64).
#pragma once

#include <cstddef>
#include <cstdint>

namespace dynabert {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

// Bits of a bfloat16, and of an IEEE half.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// The type sums are kept in.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

// The codes of the op schemas.
enum class Activation : int32_t { kNone = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3 };

// Counter-based dropout of one group of rows. threshold 0: nothing is dropped.
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;  // kept when the word is at least this
  uint32_t stream = 0;     // stream << 12, the head number goes below
  uint64_t offset = 0;     // the group's index is added
  double scale = 1.0;      // 1 / (1 - p)
};

// IEEE half to float and back in plain C++, for processors without an instruction for it.
inline float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  uint32_t word = 0;
  if (exponent == 0x1f) {  // infinity, NaN
    word = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    word = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {  // zero and subnormal numbers: fraction * 2^-24 is exact
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    __builtin_memcpy(&word, &magnitude, sizeof word);
    word |= sign;
  }
  float value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

// Round to nearest, ties to even; a NaN stays a NaN.
inline uint16_t float_to_half(float value) {
  uint32_t word;
  __builtin_memcpy(&word, &value, sizeof word);
  const uint16_t sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 leaves the bits of fraction * 2^24, rounded by the processor.
    float shifted;
    __builtin_memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace dynabert
