// Mean and spread of one row in the wide type. Compiled once for each instruction set: no include guard.

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// Four sums at a time hide the latency of the addition.
template <class S>
struct RowSum {
  Vector<S> part[4] = {};
  DYNABERT_INLINE S total() const { return sum((part[0] + part[1]) + (part[2] + part[3])); }
};

// 1 / sqrt(variance + eps) of `columns` numbers about their mean: a pass of its own, since E[x^2] - mean^2 cancels. `h`
// is readable to the end of its last register.
template <class S>
DYNABERT_INLINE S reciprocal_spread(const S* h, int64_t columns, S mean, double eps) {
  constexpr int64_t kStep = kLanes<S>;
  const int64_t whole = columns / kStep * kStep, by_four = columns / (4 * kStep) * (4 * kStep);
  const int rest = static_cast<int>(columns - whole);
  const Vector<S> centre = broadcast(mean);
  RowSum<S> squares;
  for (int64_t c = 0; c < by_four; c += 4 * kStep) {
    for (int u = 0; u < 4; ++u) {
      const Vector<S> d = load(h + c + u * kStep) - centre;
      squares.part[u] = fma(d, d, squares.part[u]);
    }
  }
  for (int64_t c = by_four; c < whole; c += kStep) {
    const Vector<S> d = load(h + c) - centre;
    squares.part[0] = fma(d, d, squares.part[0]);
  }
  if (rest) {
    const Vector<S> d = keep_part(load(h + whole) - centre, rest);
    squares.part[1] = fma(d, d, squares.part[1]);
  }
  const S variance = squares.total() / static_cast<S>(columns);
  return S(1) / static_cast<S>(__builtin_sqrt(variance + static_cast<S>(eps)));
}

}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
