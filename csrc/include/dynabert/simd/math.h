// exp, GELU and the other activations on registers. Compiled once for each instruction set: no include guard.
//
// Polynomials are minimax fits made for this project (relative error of the fit before rounding: exp 2e-9, the normal
// tail 3e-9). Errors measured against float64 over all of [-8, 8]: exp 1 ulp, gelu 2 ulp relative.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// e^x. Below -87.3 the result would be subnormal: it is 0. Above 88.7 it stays at the largest number.
DYNABERT_INLINE Float exp(Float x) {
  const Float log2_e = broadcast(1.44269504f);
  const Float rounder = broadcast(0x1.8p23f);
  const Float clamped = maximum(broadcast(-87.33654f), minimum(broadcast(88.72283f), x));
  const Float power = fma(clamped, log2_e, rounder);
  const Float n = power - rounder;
  Float r = fma(n, broadcast(-0x1.62e4p-1f), clamped);
  r = fma(n, broadcast(-1.42860677e-6f), r);
  Float p = broadcast(1.383683373e-3f);
  p = fma(p, r, broadcast(8.374822068e-3f));
  p = fma(p, r, broadcast(4.166822612e-2f));
  p = fma(p, r, broadcast(1.666642010e-1f));
  p = fma(p, r, broadcast(4.999999208e-1f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  // The low bits of `power` are n; 2^n is built from them. n = 128 would overflow the exponent, so it is split.
  const Int half = (bit_cast<Int>(power) - bit_cast<Int>(rounder)) >> 1;
  const Int rest = (bit_cast<Int>(power) - bit_cast<Int>(rounder)) - half;
  p = p * bit_cast<Float>((half + 127) << 23) * bit_cast<Float>((rest + 127) << 23);
  p = x < broadcast(-87.33654f) ? Float{} : p;
  return x != x ? x : p;
}
// e^x for x <= 0, as softmax needs it: there is no overflow to split.
DYNABERT_INLINE Float exp_nonpositive(Float x) {
  const Float rounder = broadcast(0x1.8p23f);
  const Float clamped = x < broadcast(-87.33654f) ? broadcast(-87.33654f) : x;  // a NaN passes
  const Float power = fma(clamped, broadcast(1.44269504f), rounder);
  const Float n = power - rounder;
  Float r = fma(n, broadcast(-0x1.62e4p-1f), clamped);
  r = fma(n, broadcast(-1.42860677e-6f), r);
  Float p = broadcast(1.383683373e-3f);
  p = fma(p, r, broadcast(8.374822068e-3f));
  p = fma(p, r, broadcast(4.166822612e-2f));
  p = fma(p, r, broadcast(1.666642010e-1f));
  p = fma(p, r, broadcast(4.999999208e-1f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  p = p * bit_cast<Float>((bit_cast<Int>(power) << 23) + 0x3f800000);
  return x < broadcast(-87.33654f) ? Float{} : p;
}
DYNABERT_INLINE Double exp(Double x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}
DYNABERT_INLINE Double exp_nonpositive(Double x) { return exp(x); }

// x * Phi(x). The tail Phi(-|x|) = exp(-x^2 / 2) * P(|x|) / Q(|x|), all coefficients positive, so that no digits cancel:
// more exact on the negative side than 0.5 * x * (1 + erf(x / sqrt 2)), which subtracts two numbers near 1.
DYNABERT_INLINE Float gelu(Float x) {
  const Float a = maximum(x, -x);
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
  const Float tail = exp_nonpositive(broadcast(-0.5f) * a * a) * (p / q);
  // Beyond 14 the tail is below float32, and P and Q would overflow.
  const Float part = a > broadcast(14.0f) ? Float{} : x * tail;
  return x < Float{} ? part : x - part;
}
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

template <class V>
DYNABERT_INLINE V activate(V x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kRelu:
      return x < V{} ? V{} : x;  // a NaN passes
    default:
      return x;
  }
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
