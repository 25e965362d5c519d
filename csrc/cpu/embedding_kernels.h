// Embeddings summed, normalised and dropped, and the way back into the tables. Compiled once for each instruction set.
//
// Forward: a token's table rows are added in the wide type in a scratch row that stays in the first cache; from there
// mean, variance about the mean, and the one store. Each table row is read once: 3 reads and 1 write for each number.
//
// Backward: the sum is made again from the tables rather than kept (the same traffic, one tensor less). The gradient of
// the sum is written in the wide type, then added up for each table by runs of tokens with the same id, in the order of
// the tokens, and rounded once at the store. No two tasks write the same number, so nothing depends on the threads.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/philox.h"
#include "dynabert/simd/row_moments.h"

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

// One token's rows of the tables. Those that are null take no part.
template <class T>
struct TableRows {
  using S = Wide<T>;
  const T* row[kLookups];

  // False where an id is outside its table; then nothing may be read.
  DYNABERT_INLINE bool find(const Lookup* lookups, int64_t token) {
    for (int i = 0; i < kLookups; ++i) {
      row[i] = nullptr;
      if (!lookups[i].present) continue;
      const int64_t id = lookups[i].ids ? lookups[i].ids[token] : 0;
      // As an unsigned number a negative one is the largest.
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(lookups[i].size)) return false;
      row[i] = static_cast<const T*>(lookups[i].table) + id * lookups[i].stride;
    }
    return true;
  }
  DYNABERT_INLINE Vector<S> at(int64_t c) const {
    Vector<S> v = load(row[0] + c) + load(row[1] + c);
    return row[2] ? v + load(row[2] + c) : v;
  }
  DYNABERT_INLINE Vector<S> part(int64_t c, int n) const {
    Vector<S> v = load_part(row[0] + c, n) + load_part(row[1] + c, n);
    return row[2] ? v + load_part(row[2] + c, n) : v;
  }
};

// Walks the groups along with ascending tokens; gives each token's dropout factors, or null where nothing is dropped.
template <class S>
struct FactorRows {
  const Dropout& dropout;
  const DropoutRows* groups;
  int64_t num_groups, columns, next = 0;
  S* factors = num_groups > 0 ? scratch_of<S>(kScratchB, static_cast<size_t>(columns + kLanes<S>)) : nullptr;

  DYNABERT_INLINE const S* of(int64_t token) {
    while (next < num_groups && groups[next].end <= token) ++next;
    if (next == num_groups || token < groups[next].begin) return nullptr;
    Dropout own = dropout;
    own.offset += static_cast<uint64_t>(groups[next].group);
    dropout_factors(factors, 0, columns, own, static_cast<uint32_t>(token - groups[next].begin), 0);
    return factors;
  }
};

template <class T>
int64_t forward_rows(const EmbeddingForward& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t columns = a.columns, whole = columns / kStep * kStep, by_four = columns / (4 * kStep) * (4 * kStep);
  const int rest = static_cast<int>(columns - whole);
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  S* h = scratch_of<S>(kScratchA, static_cast<size_t>(columns + kStep));
  FactorRows<S> dropped{a.dropout, a.groups, a.num_groups, columns};
  TableRows<T> tables;
  for (int64_t token = begin; token < end; ++token) {
    if (!tables.find(a.lookups, token)) return token;
    RowSum<S> sums;
    for (int64_t c = 0; c < by_four; c += 4 * kStep) {
      for (int u = 0; u < 4; ++u) {
        const Vector<S> v = tables.at(c + u * kStep);
        store(h + c + u * kStep, v);
        sums.part[u] += v;
      }
    }
    for (int64_t c = by_four; c < whole; c += kStep) {
      const Vector<S> v = tables.at(c);
      store(h + c, v);
      sums.part[0] += v;
    }
    if (rest) {
      const Vector<S> v = tables.part(whole, rest);
      store(h + whole, v);
      sums.part[1] += v;
    }
    const S mean = sums.total() / static_cast<S>(columns);
    const S rstd = reciprocal_spread(h, columns, mean, a.eps);
    const Vector<S> centre = broadcast(mean), spread = broadcast(rstd);
    const S* factors = dropped.of(token);
    T* y = static_cast<T*>(a.y) + token * columns;
    for (int64_t c = 0; c < whole; c += kStep) {
      const Vector<S> v = fma((load(h + c) - centre) * spread, load(weight + c), load(bias + c));
      store(y + c, factors ? v * load(factors + c) : v);
    }
    if (rest) {
      const Vector<S> normal = (load(h + whole) - centre) * spread;
      const Vector<S> v = fma(normal, load_part(weight + whole, rest), load_part(bias + whole, rest));
      store_part(y + whole, factors ? v * load_part(factors + whole, rest) : v, rest);
    }
    static_cast<S*>(a.mean)[token] = mean;
    static_cast<S*>(a.rstd)[token] = rstd;
  }
  return -1;
}

template <class T>
int64_t backward_chunks(const EmbeddingBackward& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t columns = a.columns, whole = columns / kStep * kStep;
  const int rest = static_cast<int>(columns - whole);
  const T* weight = static_cast<const T*>(a.weight);
  // The row's second pass needs these of the first: the tables and the masks are not asked twice.
  S* normals = scratch_of<S>(kScratchA, static_cast<size_t>(columns + kStep));
  S* scaled = scratch_of<S>(kScratchC, static_cast<size_t>(columns + kStep));
  FactorRows<S> dropped{a.dropout, a.groups, a.num_groups, columns};
  TableRows<T> tables;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    S* dw = static_cast<S*>(a.partials) + chunk * 2 * columns;
    S* db = dw + columns;
    for (int64_t c = 0; c < 2 * columns; ++c) dw[c] = S(0);
    const int64_t first = chunk * a.tokens_per_chunk;
    const int64_t last = first + a.tokens_per_chunk < a.tokens ? first + a.tokens_per_chunk : a.tokens;
    for (int64_t token = first; token < last; ++token) {
      if (!tables.find(a.lookups, token)) return token;
      const T* dy = static_cast<const T*>(a.dy) + token * a.dy_stride;
      const S* factors = dropped.of(token);
      const Vector<S> centre = broadcast(static_cast<const S*>(a.mean)[token]);
      const Vector<S> spread = broadcast(static_cast<const S*>(a.rstd)[token]);
      Vector<S> total = {}, projected = {};
      for (int64_t c = 0; c < whole; c += kStep) {
        const Vector<S> gradient = factors ? load(dy + c) * load(factors + c) : load(dy + c);
        const Vector<S> normal = (tables.at(c) - centre) * spread;
        const Vector<S> weighted = gradient * load(weight + c);
        total += weighted;
        projected = fma(weighted, normal, projected);
        store(normals + c, normal);
        store(scaled + c, weighted);
        store(dw + c, fma(gradient, normal, load(dw + c)));
        store(db + c, load(db + c) + gradient);
      }
      if (rest) {
        Vector<S> gradient = load_part(dy + whole, rest);
        if (factors) gradient = gradient * load_part(factors + whole, rest);
        const Vector<S> normal = keep_part((tables.part(whole, rest) - centre) * spread, rest);
        const Vector<S> weighted = gradient * load_part(weight + whole, rest);
        total += weighted;
        projected = fma(weighted, normal, projected);
        store(normals + whole, normal);
        store(scaled + whole, weighted);
        store_part(dw + whole, fma(gradient, normal, load_part(dw + whole, rest)), rest);
        store_part(db + whole, load_part(db + whole, rest) + gradient, rest);
      }
      const Vector<S> mean_scaled = broadcast(sum(total) / static_cast<S>(columns));
      const Vector<S> mean_projected = broadcast(sum(projected) / static_cast<S>(columns));
      S* dtotal = static_cast<S*>(a.dtotal) + token * columns;
      for (int64_t c = 0; c < whole; c += kStep) {
        store(dtotal + c, (load(scaled + c) - mean_scaled - load(normals + c) * mean_projected) * spread);
      }
      if (rest) {
        const Vector<S> v = (load(scaled + whole) - mean_scaled - load(normals + whole) * mean_projected) * spread;
        store_part(dtotal + whole, v, rest);
      }
    }
  }
  return -1;
}

// Tokens that are added before their sum joins the run's: a long run's error grows with this and with the number of
// sums, not with its length.
constexpr int64_t kTokensInOrder = 64;

template <class T>
void sum_tasks(const EmbeddingSum& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int64_t kStep = kLanes<S>;
  const int64_t columns = a.columns, slices = (columns + kSumColumns - 1) / kSumColumns;
  const S* dtotal = static_cast<const S*>(a.dtotal);
  for (int64_t task = begin; task < end; ++task) {
    const TokenRun run = a.runs[task / slices];
    const int64_t first = task % slices * kSumColumns;
    const int64_t last = first + kSumColumns < columns ? first + kSumColumns : columns;
    T* out = static_cast<T*>(a.out) + run.id * columns;
    int64_t c = first;
    for (; c + 4 * kStep <= last; c += 4 * kStep) {
      Vector<S> total[4] = {};
      for (int64_t i = run.begin; i < run.end; i += kTokensInOrder) {
        Vector<S> part[4] = {};
        const int64_t stop = i + kTokensInOrder < run.end ? i + kTokensInOrder : run.end;
        for (int64_t j = i; j < stop; ++j) {
          const S* row = dtotal + a.sorted[j] * columns + c;
          for (int u = 0; u < 4; ++u) part[u] += load(row + u * kStep);
        }
        for (int u = 0; u < 4; ++u) total[u] += part[u];
      }
      for (int u = 0; u < 4; ++u) store(out + c + u * kStep, total[u]);
    }
    for (; c < last; c += kStep) {
      const int n = last - c < kStep ? static_cast<int>(last - c) : static_cast<int>(kStep);
      Vector<S> total = {};
      for (int64_t i = run.begin; i < run.end; i += kTokensInOrder) {
        Vector<S> part = {};
        const int64_t stop = i + kTokensInOrder < run.end ? i + kTokensInOrder : run.end;
        for (int64_t j = i; j < stop; ++j) part += load_part(dtotal + a.sorted[j] * columns + c, n);
        total += part;
      }
      store_part(out + c, total, n);
    }
  }
}

int64_t embedding_forward(const EmbeddingForward& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return forward_rows<float>(a, begin, end);
    case DType::kBFloat16:
      return forward_rows<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return forward_rows<Half>(a, begin, end);
    case DType::kFloat64:
      return forward_rows<double>(a, begin, end);
  }
  return -1;
}
int64_t embedding_backward(const EmbeddingBackward& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return backward_chunks<float>(a, begin, end);
    case DType::kBFloat16:
      return backward_chunks<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return backward_chunks<Half>(a, begin, end);
    case DType::kFloat64:
      return backward_chunks<double>(a, begin, end);
  }
  return -1;
}
void embedding_sum(const EmbeddingSum& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return sum_tasks<float>(a, begin, end);
    case DType::kBFloat16:
      return sum_tasks<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return sum_tasks<Half>(a, begin, end);
    case DType::kFloat64:
      return sum_tasks<double>(a, begin, end);
  }
}

}  // namespace

constexpr EmbeddingKernels kEmbedding = {embedding_forward, embedding_backward, embedding_sum};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
