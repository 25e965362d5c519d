// One register of floats or doubles, and how the four element types get into it and out of it.
//
// Compiled once for each instruction set by foreach_isa.h: no include guard. Arithmetic is the compiler's own on vector
// types; only what has no operator is written with intrinsics.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

#define DYNABERT_INLINE inline __attribute__((always_inline))

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
constexpr int kVectorBytes = 64;
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using Float = float __attribute__((vector_size(kVectorBytes)));
using Int = int32_t __attribute__((vector_size(kVectorBytes)));
using UInt = uint32_t __attribute__((vector_size(kVectorBytes)));
using UShort = uint16_t __attribute__((vector_size(kVectorBytes / 2)));
using Double = double __attribute__((vector_size(kVectorBytes)));

// The register type of a scalar, and how many of it there are.
template <class S>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Float;
};
template <>
struct VectorOf<double> {
  using type = Double;
};
template <class S>
using Vector = typename VectorOf<S>::type;
template <class S>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(S));

template <class To, class From>
DYNABERT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

DYNABERT_INLINE Float broadcast(float x) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_set1_ps(x);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  return (Float)_mm256_set1_ps(x);
#else
  return x - Float{};
#endif
}
DYNABERT_INLINE Double broadcast(double x) { return x - Double{}; }

DYNABERT_INLINE Float fma(Float a, Float b, Float c) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
DYNABERT_INLINE Double fma(Double a, Double b, Double c) { return a * b + c; }

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// sum + a . b over pairs of bfloat16. Written as assembler so that this instruction appears nowhere by itself: not
// every processor with AVX-512 has it, callers ask use_bfloat16_dot().
DYNABERT_INLINE Float dot_bfloat16(Float sum, Float a, Float b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
#endif

// The larger and the smaller of each lane. Where either is a NaN: b.
DYNABERT_INLINE Float maximum(Float a, Float b) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_max_ps((__m512)a, (__m512)b);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  return (Float)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
DYNABERT_INLINE Float minimum(Float a, Float b) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_min_ps((__m512)a, (__m512)b);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  return (Float)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
DYNABERT_INLINE Double maximum(Double a, Double b) { return a > b ? a : b; }
DYNABERT_INLINE Double minimum(Double a, Double b) { return a < b ? a : b; }

// The same numbers, out of the compiler's sight: a product is then rounded here, and not fused with a later sum.
template <class V>
DYNABERT_INLINE V rounded(V v) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

// x * 2^n for a whole number n from -126 to 128; infinite at 128.
DYNABERT_INLINE Float scale_by_power(Float x, Float n) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_scalef_ps((__m512)x, (__m512)n);  // at 128 infinite only if x is at least 1: near enough
#else
  return x * bit_cast<Float>((__builtin_convertvector(n, Int) + 127) << 23);
#endif
}

// Sum and largest of a register's lanes, always in the same order.
DYNABERT_INLINE float sum(Float v) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return _mm512_reduce_add_ps((__m512)v);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}
DYNABERT_INLINE double sum(Double v) {
  double total = 0.0;
  for (int i = 0; i < kLanes<double>; ++i) total += v[i];
  return total;
}
DYNABERT_INLINE float largest(Float v) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return _mm512_reduce_max_ps((__m512)v);
#else
  float found = v[0];
  for (int i = 1; i < kLanes<float>; ++i) found = v[i] > found ? v[i] : found;
  return found;
#endif
}
DYNABERT_INLINE int32_t largest(Int v) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t found = v[0];
  for (int i = 1; i < kLanes<float>; ++i) found = v[i] > found ? v[i] : found;
  return found;
#endif
}
DYNABERT_INLINE double largest(Double v) {
  double found = v[0];
  for (int i = 1; i < kLanes<double>; ++i) found = v[i] > found ? v[i] : found;
  return found;
}

// ---- load and store: whole registers, and the first n lanes (the others read as 0 and are not written)

DYNABERT_INLINE Float load(const float* p) {
  Float v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
DYNABERT_INLINE Double load(const double* p) {
  Double v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
DYNABERT_INLINE void store(float* p, Float v) { __builtin_memcpy(p, &v, sizeof v); }
DYNABERT_INLINE void store(double* p, Double v) { __builtin_memcpy(p, &v, sizeof v); }

// Short numbers to long ones and back. As intrinsics where there are any: of the generic conversion gcc makes two
// halves and joins them.
DYNABERT_INLINE UInt widen(UShort bits) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (UInt)_mm512_cvtepu16_epi32((__m256i)bits);
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
  return (UInt)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, UInt);
#endif
}
DYNABERT_INLINE UShort narrow(UInt bits) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (UShort)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, UShort);
#endif
}

DYNABERT_INLINE Float from_bfloat16(UShort bits) { return bit_cast<Float>(widen(bits) << 16); }
// Round to nearest, ties to even; a NaN stays a NaN.
DYNABERT_INLINE UShort to_bfloat16(Float v) {
  const UInt bits = bit_cast<UInt>(v);
  const UInt rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UInt quiet = (bits >> 16) | 0x40u;
  return narrow(v != v ? quiet : rounded);
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
DYNABERT_INLINE Float from_half(UShort bits) { return (Float)_mm512_cvtph_ps((__m256i)bits); }
DYNABERT_INLINE UShort to_half(Float v) {
  return (UShort)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
DYNABERT_INLINE Float from_half(UShort bits) { return (Float)_mm256_cvtph_ps((__m128i)bits); }
DYNABERT_INLINE UShort to_half(Float v) {
  return (UShort)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
DYNABERT_INLINE Float from_half(UShort bits) {
  Float v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = half_to_float(bits[i]);
  return v;
}
DYNABERT_INLINE UShort to_half(Float v) {
  UShort bits;
  for (int i = 0; i < kLanes<float>; ++i) bits[i] = float_to_half(v[i]);
  return bits;
}
#endif

DYNABERT_INLINE UShort load_bits(const void* p) {
  UShort bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return bits;
}
DYNABERT_INLINE Float load(const BFloat16* p) { return from_bfloat16(load_bits(p)); }
DYNABERT_INLINE Float load(const Half* p) { return from_half(load_bits(p)); }
DYNABERT_INLINE void store(BFloat16* p, Float v) {
  const UShort bits = to_bfloat16(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}
DYNABERT_INLINE void store(Half* p, Float v) {
  const UShort bits = to_half(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// A bfloat16 that is stored by the processor's own instruction, for callers that have asked use_bfloat16_dot(). The
// same rounding, but for subnormal numbers, which become 0.
struct NativeBFloat16 : BFloat16 {};
DYNABERT_INLINE UShort to_native_bfloat16(Float v) {
  UShort bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v));
  return bits;
}
DYNABERT_INLINE void store(NativeBFloat16* p, Float v) {
  const UShort bits = to_native_bfloat16(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}
// first, then second: neighbours.
DYNABERT_INLINE Int to_native_bfloat16(Float first, Float second) {
  Int bits;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(bits) : "v"(first), "v"(second));
  return bits;
}
DYNABERT_INLINE void store_pair(NativeBFloat16* p, Float first, Float second) {
  const Int bits = to_native_bfloat16(first, second);
  __builtin_memcpy(p, &bits, sizeof bits);
}
#endif

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
DYNABERT_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
DYNABERT_INLINE Float load_part(const float* p, int n) { return (Float)_mm512_maskz_loadu_ps(first_lanes(n), p); }
DYNABERT_INLINE void store_part(float* p, Float v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v); }
DYNABERT_INLINE UShort load_bits_part(const void* p, int n) {
  return (UShort)_mm256_maskz_loadu_epi16(first_lanes(n), p);
}
DYNABERT_INLINE void store_bits_part(void* p, UShort bits, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)bits);
}
#else
DYNABERT_INLINE Float load_part(const float* p, int n) {
  Float v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return v;
}
DYNABERT_INLINE void store_part(float* p, Float v, int n) {
  __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof *p);
}
DYNABERT_INLINE UShort load_bits_part(const void* p, int n) {
  UShort bits = {};
  __builtin_memcpy(&bits, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return bits;
}
DYNABERT_INLINE void store_bits_part(void* p, UShort bits, int n) {
  __builtin_memcpy(p, &bits, static_cast<size_t>(n) * sizeof(uint16_t));
}
#endif
DYNABERT_INLINE Float load_part(const BFloat16* p, int n) { return from_bfloat16(load_bits_part(p, n)); }
DYNABERT_INLINE Float load_part(const Half* p, int n) { return from_half(load_bits_part(p, n)); }
DYNABERT_INLINE void store_part(BFloat16* p, Float v, int n) { store_bits_part(p, to_bfloat16(v), n); }
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
DYNABERT_INLINE void store_part(NativeBFloat16* p, Float v, int n) { store_bits_part(p, to_native_bfloat16(v), n); }
#endif
DYNABERT_INLINE void store_part(Half* p, Float v, int n) { store_bits_part(p, to_half(v), n); }
DYNABERT_INLINE Double load_part(const double* p, int n) {
  Double v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return v;
}
DYNABERT_INLINE void store_part(double* p, Double v, int n) {
  __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof *p);
}

// Lanes n and above become 0.
DYNABERT_INLINE Float keep_part(Float v, int n) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_maskz_mov_ps(first_lanes(n), (__m512)v);
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = i < n ? v[i] : 0.0f;
  return v;
#endif
}
DYNABERT_INLINE Double keep_part(Double v, int n) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = i < n ? v[i] : 0.0;
  return v;
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
