// exp, GELU and the other activations on registers. Compiled once for each instruction set: no include guard.
//
// Polynomials are minimax fits made for this project (relative error of the fit before rounding: exp 2e-9, the normal
// tail 3e-9). Errors measured against float64 over all of [-8, 8]: exp 1 ulp, gelu 2 ulp relative.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// e^r 2^n for x = r + n log 2, with |r| <= log(2) / 2.
DYNABERT_INLINE Float exp_reduced(Float x, Float n) {
  Float r = fma(n, broadcast(-0x1.62e4p-1f), x);
  r = fma(n, broadcast(-1.42860677e-6f), r);
  Float p = broadcast(1.383683373e-3f);
  p = fma(p, r, broadcast(8.374822068e-3f));
  p = fma(p, r, broadcast(4.166822612e-2f));
  p = fma(p, r, broadcast(1.666642010e-1f));
  p = fma(p, r, broadcast(4.999999208e-1f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power(p, n);
}

// x / log 2, rounded to a whole number: adding 1.5 * 2^23 leaves no bits for a fraction.
DYNABERT_INLINE Float whole_powers(Float x) {
  const Float rounder = broadcast(0x1.8p23f);
  return fma(x, broadcast(1.44269504f), rounder) - rounder;
}

// e^x. Below -87.3 the result would be subnormal: it stays at the smallest normal number. Above 88.4 it is infinite.
// A NaN passes.
DYNABERT_INLINE Float exp(Float x) {
  const Float clamped = maximum(broadcast(-87.33654f), minimum(broadcast(89.0f), x));
  return exp_reduced(clamped, whole_powers(clamped));
}
// e^x for x <= 0, as softmax needs it: 0 below -87.3. A NaN passes.
DYNABERT_INLINE Float exp_nonpositive(Float x) {
  const Float clamped = maximum(broadcast(-87.33654f), x);
  const Float p = exp_reduced(clamped, whole_powers(clamped));
  return x < broadcast(-87.33654f) ? Float{} : p;
}
DYNABERT_INLINE Double exp(Double x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}
DYNABERT_INLINE Double exp_nonpositive(Double x) { return exp(x); }

// For results that are stored as bfloat16 (kShort): 3e-9 would be lost in its rounding of 4e-3. These fits err by 8e-5
// (the exponential) and 2e-5 (the normal tail), the reciprocal by 6e-5, and take two thirds of the instructions.
DYNABERT_INLINE Float short_exp_reduced(Float x, Float n) {
  const Float r = fma(n, broadcast(-0.693147181f), x);
  Float p = broadcast(1.656644042e-1f);
  p = fma(p, r, broadcast(5.049830461e-1f));
  p = fma(p, r, broadcast(1.000165506f));
  p = fma(p, r, broadcast(9.999275072e-1f));
  return scale_by_power(p, n);
}
DYNABERT_INLINE Float short_reciprocal(Float x) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Float)_mm512_rcp14_ps((__m512)x);
#else
  return broadcast(1.0f) / x;
#endif
}
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// 2^x for x <= 0, erring by 1.5e-7: 1 at 0, 0 at -inf and where the result would be below all numbers. A NaN passes.
DYNABERT_INLINE Float exp2_nonpositive(Float x) {
  const Float r = (Float)_mm512_reduce_ps((__m512)x, 0x09);  // x less the next whole number below, which scalef takes
  Float p = broadcast(0x1.e97502p-10f);
  p = fma(p, r, broadcast(0x1.277854p-7f));
  p = fma(p, r, broadcast(0x1.c91ce6p-5f));
  p = fma(p, r, broadcast(0x1.ebdb56p-3f));
  p = fma(p, r, broadcast(0x1.62e4bap-1f));
  p = fma(p, r, broadcast(1.0f));
  return (Float)_mm512_scalef_ps((__m512)p, (__m512)x);
}
#endif

// e^(-a^2 / 2).
template <bool kShort>
DYNABERT_INLINE Float bell(Float a) {
  const Float power = broadcast(-0.5f) * a * a;
  return kShort ? short_exp_reduced(power, whole_powers(power)) : exp_reduced(power, whole_powers(power));
}

// Phi(-a) e^(a^2 / 2) for a >= 0: P(a) / Q(a), all coefficients positive, so that no digits cancel.
template <bool kShort>
DYNABERT_INLINE Float normal_tail_ratio(Float a) {
  if constexpr (kShort) {
    Float p = broadcast(6.196305219e-2f);
    p = fma(p, a, broadcast(2.769390710e-1f));
    p = fma(p, a, broadcast(5.000113602e-1f));
    Float q = broadcast(1.551285880e-1f);
    q = fma(q, a, broadcast(6.994875057e-1f));
    q = fma(q, a, broadcast(1.352473520f));
    q = fma(q, a, broadcast(1.0f));
    return p * short_reciprocal(q);
  }
  Float p = broadcast(3.686036329e-3f);
  p = fma(p, a, broadcast(3.768403458e-2f));
  p = fma(p, a, broadcast(1.743926909e-1f));
  p = fma(p, a, broadcast(4.261882730e-1f));
  p = fma(p, a, broadcast(0.5f));
  Float q = broadcast(9.239262692e-3f);
  q = fma(q, a, broadcast(9.447150302e-2f));
  q = fma(q, a, broadcast(4.461453910e-1f));
  q = fma(q, a, broadcast(1.165501060f));
  q = fma(q, a, broadcast(1.650261298f));
  q = fma(q, a, broadcast(1.0f));
  return p / q;
}

// x * Phi(x), from the tail Phi(-|x|): more exact on the negative side than 0.5 * x * (1 + erf(x / sqrt 2)), which
// subtracts two numbers near 1. max(x, 0) - |x| Phi(-|x|) holds on both sides. Beyond 13.2 the tail is below float32.
template <bool kShort = false>
DYNABERT_INLINE Float gelu(Float x) {
  const Float a = minimum(broadcast(13.2f), maximum(-x, x));
  return fma(-a, bell<kShort>(a) * normal_tail_ratio<kShort>(a), maximum(Float{}, x));
}
template <bool kShort = false>
DYNABERT_INLINE Double gelu(Double x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = 0.5 * x[i] * __builtin_erfc(-x[i] * 0.70710678118654752440);
  return x;
}

// 0.5 x (1 + tanh u) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class V>
DYNABERT_INLINE V gelu_tanh(V x) {
  using S = decltype(x[0] + x[0]);
  const V cube = broadcast(S(0.044715)) * x * x * x;
  return x / (broadcast(S(1)) + exp(broadcast(S(-1.5957691216057308)) * (x + cube)));
}

template <bool kShort = false, class V>
DYNABERT_INLINE V activate(V x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return gelu<kShort>(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kRelu:
      return x < V{} ? V{} : x;  // a NaN passes
    default:
      return x;
  }
}

// An activation and its derivative, which share the exponential.
template <class V>
struct ValueAndSlope {
  V value, slope;
};

// Phi(x) + x phi(x) is tail - a phi(a) below 0 and 1 minus that above: near 0 no digits cancel that the result needs.
template <bool kShort = false>
DYNABERT_INLINE ValueAndSlope<Float> gelu_with_slope(Float x) {
  const Float a = minimum(broadcast(13.2f), maximum(-x, x));
  const Float height = bell<kShort>(a);
  const Float tail = height * normal_tail_ratio<kShort>(a);
  const Float outer = fma(-a * height, broadcast(0.398942280f), tail);
  return {fma(-a, tail, maximum(Float{}, x)), x < Float{} ? outer : broadcast(1.0f) - outer};
}
template <bool kShort = false>
DYNABERT_INLINE ValueAndSlope<Double> gelu_with_slope(Double x) {
  Double slope;
  for (int i = 0; i < kLanes<double>; ++i) {
    const double density = __builtin_exp(-0.5 * x[i] * x[i]) * 0.39894228040143267794;
    slope[i] = 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440) + (density == 0.0 ? 0.0 : x[i] * density);
  }
  return {gelu(x), slope};
}

// With s = 1 / (1 + e^(-2u)): s + x s (1 - s) 2 u'. Beyond 11 the second part is below float32, and x^2 times 0 must
// not become a NaN.
template <class V>
DYNABERT_INLINE ValueAndSlope<V> gelu_tanh_with_slope(V x) {
  using S = decltype(x[0] + x[0]);
  const S limit = sizeof(S) == sizeof(float) ? S(11) : S(25);
  const V near = minimum(broadcast(limit), maximum(broadcast(-limit), x));
  const V square = near * near;
  // From the side where e is at most 1: s (1 - s) is then e / (1 + e)^2, and nothing cancels.
  const V e = exp(broadcast(S(-1.5957691216057308)) * maximum(-near, near) *
                  (broadcast(S(1)) + broadcast(S(0.044715)) * square));
  const V upper = broadcast(S(1)) / (broadcast(S(1)) + e);
  const V s = x < V{} ? e * upper : upper;
  const V rise = broadcast(S(1.5957691216057308)) * (broadcast(S(1)) + broadcast(S(0.134145)) * square);
  return {x * s, s + near * e * upper * upper * rise};
}

template <bool kShort = false, class V>
DYNABERT_INLINE ValueAndSlope<V> activate_with_slope(V x, Activation activation) {
  using S = decltype(x[0] + x[0]);
  switch (activation) {
    case Activation::kGelu:
      return gelu_with_slope<kShort>(x);
    case Activation::kGeluTanh:
      return gelu_tanh_with_slope(x);
    case Activation::kRelu:
      return {x < V{} ? V{} : x, x > V{} ? broadcast(S(1)) : V{}};
    default:
      return {x, broadcast(S(1))};
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
