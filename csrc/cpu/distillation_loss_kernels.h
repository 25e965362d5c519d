// Loss and gradient of student rows against their teacher rows. Compiled once for each instruction set.
//
// Squared error: one pass, 2 reads of a row forward, and 1 write backward. Soft cross-entropy: a row goes to scratch in
// the wide type, filled up with -inf to whole registers (so no later pass has a rest), then from cache: the
// exponentials relative to its largest entry, and their sum. A teacher row's are kept while the next student rows have
// it too: in a stacked batch that is one row in four. With e = exp(t - max t), f = exp(s - max s):
//
//   loss = sum(e * (max s - s)) / sum(e) + log(sum(f)),   every term at least 0, so nothing cancels
//   d loss / d s = f / sum(f) - e / sum(e)
//
// The sums are formed again in the backward: it reads both rows anyway, and nothing has to be saved for it.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/math.h"

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// Four sums at a time hide the latency of the addition. They run over one block of columns: so none of them is longer
// than 32 additions, and what float32 loses stays below its eps however wide the row. Blocks are added in float64.
template <class S>
struct FourSums {
  static constexpr int64_t kTurn = 4 * kLanes<S>, kBlock = 32 * kTurn;
  Vector<S> part[4] = {};
  DYNABERT_INLINE double total() const { return sum((part[0] + part[1]) + (part[2] + part[3])); }
};

// How many of `left` columns the block has that begins here.
template <class S>
DYNABERT_INLINE int64_t block_of(int64_t left) {
  return left < FourSums<S>::kBlock ? left : FourSums<S>::kBlock;
}

template <class S>
DYNABERT_INLINE S minus_infinity() {
  return -static_cast<S>(__builtin_inf());
}

// wide = row, then -inf up to a whole register. Returns the largest entry.
template <class T, class S>
DYNABERT_INLINE S widen(S* wide, const T* row, int64_t columns) {
  constexpr int64_t kStep = kLanes<S>;
  const int64_t whole = columns / kStep * kStep;
  Vector<S> top = broadcast(minus_infinity<S>());
  for (int64_t c = 0; c < whole; c += kStep) {
    const Vector<S> v = load(row + c);
    store(wide + c, v);
    top = maximum(top, v);
  }
  if (whole < columns) {
    const int rest = static_cast<int>(columns - whole);
    store(wide + whole, broadcast(minus_infinity<S>()));
    store_part(wide + whole, load_part(row + whole, rest), rest);
    top = maximum(top, load(wide + whole));
  }
  return largest(top);
}

// In place: v = e^(v - top). Returns the sum.
template <class S>
DYNABERT_INLINE double exponentials(S* v, S top, int64_t columns) {
  constexpr int64_t kStep = kLanes<S>;
  const Vector<S> shift = broadcast(top);
  double total = 0.0;
  for (const S* end = v + columns; v < end;) {
    FourSums<S> sums;
    const S* block_end = v + block_of<S>(end - v);
    for (; block_end - v >= FourSums<S>::kTurn; v += FourSums<S>::kTurn) {
      for (int u = 0; u < 4; ++u) {
        const Vector<S> e = exp_nonpositive(load(v + u * kStep) - shift);
        store(v + u * kStep, e);
        sums.part[u] += e;
      }
    }
    for (; v < block_end; v += kStep) {
      const Vector<S> e = exp_nonpositive(load(v) - shift);
      store(v, e);
      sums.part[0] += e;
    }
    total += sums.total();
  }
  return total;
}

// A teacher row as the soft cross-entropy reads it, kept for as long as the next student rows have it too.
template <class S>
struct TeacherRow {
  S* e;  // e^(t - max t), 0 past the last column
  double total = 0.0;
  int32_t row = kNoTeacher;

  template <class T>
  DYNABERT_INLINE void take(const DistillationLoss& a, int32_t wanted) {
    if (wanted == row) return;
    row = wanted;
    const S top = widen(e, static_cast<const T*>(a.teacher) + wanted * a.teacher_stride, a.columns);
    total = exponentials(e, top, a.columns);
  }
};

// One register of the loss's two sums.
template <class S>
DYNABERT_INLINE void add_terms(const S* s, const S* e, Vector<S> top, Vector<S>& total, Vector<S>& cross) {
  const Vector<S> gap = top - load(s), weight = load(e);
  total += exp_nonpositive(-gap);
  // What the teacher rules out counts nothing, an infinite gap there too. A NaN is not 0 and stays.
  cross += weight == Vector<S>{} ? Vector<S>{} : weight * gap;
}

template <class T, class S>
double soft_cross_entropy(const T* student, const TeacherRow<S>& teacher, int64_t columns, S* s) {
  constexpr int64_t kStep = kLanes<S>;
  const Vector<S> top = broadcast(widen(s, student, columns));
  double total = 0.0, cross = 0.0;
  const S* e = teacher.e;
  for (const S* end = s + columns; s < end;) {
    FourSums<S> totals, crosses;
    const S* block_end = s + block_of<S>(end - s);
    for (; block_end - s >= FourSums<S>::kTurn; s += FourSums<S>::kTurn, e += FourSums<S>::kTurn) {
      for (int u = 0; u < 4; ++u) {
        add_terms(s + u * kStep, e + u * kStep, top, totals.part[u], crosses.part[u]);
      }
    }
    for (; s < block_end; s += kStep, e += kStep) add_terms(s, e, top, totals.part[0], crosses.part[0]);
    total += totals.total();
    cross += crosses.total();
  }
  return cross / teacher.total + __builtin_log(total);
}

template <class T, class S>
void soft_cross_entropy_gradient(const T* student, const TeacherRow<S>& teacher, int64_t columns, S scale, T* dstudent,
                                 S* s) {
  constexpr int64_t kStep = kLanes<S>;
  const double total = exponentials(s, widen(s, student, columns), columns);
  const Vector<S> s_part = broadcast(static_cast<S>(1.0 / total));
  const Vector<S> t_part = broadcast(static_cast<S>(1.0 / teacher.total));
  const Vector<S> factor = broadcast(scale);
  const int64_t whole = columns / kStep * kStep;
  for (int64_t c = 0; c < whole; c += kStep) {
    store(dstudent + c, (load(s + c) * s_part - load(teacher.e + c) * t_part) * factor);
  }
  if (whole < columns) {
    const Vector<S> d = (load(s + whole) * s_part - load(teacher.e + whole) * t_part) * factor;
    store_part(dstudent + whole, d, static_cast<int>(columns - whole));
  }
}

template <class T>
DYNABERT_INLINE double squared_error(const T* student, const T* teacher, int64_t columns) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  double total = 0.0;
  for (const T* end = student + columns; student < end;) {
    FourSums<S> sums;
    const T* block_end = student + block_of<S>(end - student);
    for (; block_end - student >= FourSums<S>::kTurn; student += FourSums<S>::kTurn, teacher += FourSums<S>::kTurn) {
      for (int u = 0; u < 4; ++u) {
        const Vector<S> d = load(student + u * kStep) - load(teacher + u * kStep);
        sums.part[u] = fma(d, d, sums.part[u]);
      }
    }
    for (; block_end - student >= kStep; student += kStep, teacher += kStep) {
      const Vector<S> d = load(student) - load(teacher);
      sums.part[0] = fma(d, d, sums.part[0]);
    }
    if (student < block_end) {
      const int rest = static_cast<int>(block_end - student);
      const Vector<S> d = load_part(student, rest) - load_part(teacher, rest);
      sums.part[1] = fma(d, d, sums.part[1]);
      student = block_end;
    }
    total += sums.total();
  }
  return total;
}

template <class T>
void squared_error_gradient(const T* student, const T* teacher, int64_t columns, Wide<T> scale, T* dstudent) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t whole = columns / kStep * kStep;
  const Vector<S> factor = broadcast(S(2) * scale);
  for (int64_t c = 0; c < whole; c += kStep) {
    store(dstudent + c, (load(student + c) - load(teacher + c)) * factor);
  }
  if (whole < columns) {
    const int rest = static_cast<int>(columns - whole);
    store_part(dstudent + whole, (load_part(student + whole, rest) - load_part(teacher + whole, rest)) * factor, rest);
  }
}

template <class S>
DYNABERT_INLINE S* scratch_row(ScratchSlot slot, int64_t columns) {
  return scratch_of<S>(slot, static_cast<size_t>(columns + kLanes<S>));
}

template <class T>
void forward_rows(const DistillationLoss& a, double* losses, int64_t begin, int64_t end) {
  using S = Wide<T>;
  S* s = a.squared_error ? nullptr : scratch_row<S>(kScratchA, a.columns);
  TeacherRow<S> kept = {a.squared_error ? nullptr : scratch_row<S>(kScratchB, a.columns)};
  for (int64_t i = begin; i < end; ++i) {
    const RowPair pair = a.pairs[i];
    if (pair.teacher == kNoTeacher) {
      losses[pair.student] = 0.0;
      continue;
    }
    const T* student = static_cast<const T*>(a.student) + pair.student * a.student_stride;
    if (a.squared_error) {
      const T* teacher = static_cast<const T*>(a.teacher) + pair.teacher * a.teacher_stride;
      losses[pair.student] = squared_error(student, teacher, a.columns);
    } else {
      kept.template take<T>(a, pair.teacher);
      losses[pair.student] = soft_cross_entropy(student, kept, a.columns, s);
    }
  }
}

template <class T>
void backward_rows(const DistillationLoss& a, const double* scales, void* dstudent, int64_t begin, int64_t end) {
  using S = Wide<T>;
  S* s = a.squared_error ? nullptr : scratch_row<S>(kScratchA, a.columns);
  TeacherRow<S> kept = {a.squared_error ? nullptr : scratch_row<S>(kScratchB, a.columns)};
  for (int64_t i = begin; i < end; ++i) {
    const RowPair pair = a.pairs[i];
    T* out = static_cast<T*>(dstudent) + pair.student * a.columns;
    if (pair.teacher == kNoTeacher) {
      __builtin_memset(out, 0, static_cast<size_t>(a.columns) * sizeof(T));
      continue;
    }
    const T* student = static_cast<const T*>(a.student) + pair.student * a.student_stride;
    const S scale = static_cast<S>(scales[pair.student]);
    if (a.squared_error) {
      const T* teacher = static_cast<const T*>(a.teacher) + pair.teacher * a.teacher_stride;
      squared_error_gradient(student, teacher, a.columns, scale, out);
    } else {
      kept.template take<T>(a, pair.teacher);
      soft_cross_entropy_gradient(student, kept, a.columns, scale, out, s);
    }
  }
}

void distillation_loss_forward(const DistillationLoss& a, double* losses, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return forward_rows<float>(a, losses, begin, end);
    case DType::kBFloat16:
      return forward_rows<BFloat16>(a, losses, begin, end);
    case DType::kFloat16:
      return forward_rows<Half>(a, losses, begin, end);
    case DType::kFloat64:
      return forward_rows<double>(a, losses, begin, end);
  }
}
void distillation_loss_backward(const DistillationLoss& a, const double* scales, void* dstudent, int64_t begin,
                                int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return backward_rows<float>(a, scales, dstudent, begin, end);
    case DType::kBFloat16:
      return backward_rows<BFloat16>(a, scales, dstudent, begin, end);
    case DType::kFloat16:
      return backward_rows<Half>(a, scales, dstudent, begin, end);
    case DType::kFloat64:
      return backward_rows<double>(a, scales, dstudent, begin, end);
  }
}

}  // namespace

constexpr DistillationLossKernels kDistillationLoss = {distillation_loss_forward, distillation_loss_backward};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
