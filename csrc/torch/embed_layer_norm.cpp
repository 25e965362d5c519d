// embed_layer_norm on the CPU: check, allocate, call.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>

#include "cpu/embedding.h"
#include "cpu/layer_norm.h"
#include "cpu/scratch.h"
#include "torch/inference.h"

namespace dynabert::binding {
namespace {

const char* const kIdNames[cpu::kLookups] = {"input_ids", "position_ids", "token_type_ids"};
const char* const kTableNames[cpu::kLookups] = {"word", "position", "token_type"};

void set_lookup(const char* op, int index, const std::optional<Tensor>& ids, const std::optional<Tensor>& table,
                const Tensor& word, int64_t tokens, cpu::Lookup& lookup) {
  const char* name = kTableNames[index];
  if (!table.has_value()) {
    if (ids.has_value()) refuse(op, kIdNames[index], " given, but not ", name, "; leave them out, or give the table");
    return;
  }
  check_shape(op, name, *table, {-1, word.size(1)}, "(rows, C)");
  check_dtype(op, name, *table, "word", word.scalar_type());
  check_last_stride(op, name, *table);
  lookup.present = true;
  lookup.table = table->const_data_ptr();
  lookup.size = table->size(0);
  lookup.stride = table->stride(0);
  if (!ids.has_value()) return;
  check_shape(op, kIdNames[index], *ids, {tokens}, "(T,)");
  if (ids->scalar_type() != ScalarType::Long) {
    refuse(op, kIdNames[index], " is ", torch::headeronly::toString(ids->scalar_type()), "; allowed: int64");
  }
  check_last_stride(op, kIdNames[index], *ids);
  lookup.ids = static_cast<const int64_t*>(ids->const_data_ptr());
}

template <class Arguments>
void set_lookups(const char* op, const Tensor& input_ids, const Tensor& position_ids,
                 const std::optional<Tensor>& token_type_ids, const Tensor& word, const Tensor& position,
                 const std::optional<Tensor>& token_type, Arguments& a) {
  check_shape(op, "input_ids", input_ids, {-1}, "(T,)");
  check_shape(op, "word", word, {-1, -1}, "(V, C)");
  a.dtype = float_dtype(op, "word", word);
  a.columns = word.size(1);
  if (a.columns == 0) refuse(op, "word has shape ", shape_of(word), "; allowed: at least one column");
  const int64_t tokens = input_ids.size(0);
  set_lookup(op, 0, input_ids, word, word, tokens, a.lookups[0]);
  set_lookup(op, 1, position_ids, position, word, tokens, a.lookups[1]);
  set_lookup(op, 2, token_type_ids, token_type, word, tokens, a.lookups[2]);
}

// The groups whose rows are dropped; empty where nothing is. Without borders all tokens are one group.
std::vector<cpu::DropoutRows> dropout_rows(const char* op, const std::optional<Tensor>& rows, const Dropout& dropout,
                                           int64_t tokens) {
  std::vector<cpu::DropoutRows> groups;
  if (dropout.threshold == 0) return groups;
  if (!rows.has_value()) {
    groups.push_back({0, tokens, 0});
    return groups;
  }
  for (const Span& span : read_spans(op, *rows, std::nullopt, "", 1, 0, tokens)) {
    groups.push_back({span.begin, span.end, span.group});
  }
  return groups;
}

// Which token is the first with a wrong id, whichever thread finds it.
class FirstWrong {
 public:
  void found(int64_t token) {
    if (token < 0) return;
    int64_t known = first_.load(std::memory_order_relaxed);
    while (token < known && !first_.compare_exchange_weak(known, token, std::memory_order_relaxed)) {
    }
  }

  // Throws std::out_of_range, which arrives in Python as IndexError.
  void refuse_if_any(const char* op, const cpu::Lookup* lookups) const {
    const int64_t token = first_.load();
    if (token == kNone) return;
    for (int i = 0; i < cpu::kLookups; ++i) {
      if (!lookups[i].present) continue;
      const int64_t id = lookups[i].ids ? lookups[i].ids[token] : 0;
      if (id >= 0 && id < lookups[i].size) continue;
      std::ostringstream text;
      text << op << ": " << (lookups[i].ids ? kIdNames[i] : "the default token type") << " of token " << token << " is "
           << id << ", outside the table " << kTableNames[i] << " of " << lookups[i].size << " rows; allowed: 0 to "
           << lookups[i].size - 1;
      throw std::out_of_range(text.str());
    }
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first_{kNone};
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> embed_layer_norm_fwd(const Tensor& input_ids, const Tensor& position_ids,
                                                        std::optional<Tensor> token_type_ids, const Tensor& word,
                                                        const Tensor& position, std::optional<Tensor> token_type,
                                                        const Tensor& weight, const Tensor& bias,
                                                        std::optional<Tensor> rows, std::optional<Tensor> dropout_state,
                                                        double eps, double dropout_p, int64_t dropout_stream,
                                                        int64_t padding_idx) {
  const char* op = "embed_layer_norm_fwd";
  cpu::EmbeddingForward a = {};
  set_lookups(op, input_ids, position_ids, token_type_ids, word, position, token_type, a);
  const int64_t tokens = input_ids.size(0), columns = a.columns;
  a.weight = vector_of(op, "weight", weight, columns, word.scalar_type());
  a.bias = vector_of(op, "bias", bias, columns, word.scalar_type());
  a.eps = eps;
  a.dropout = dropout_of(op, dropout_state, dropout_p, dropout_stream);
  const std::vector<cpu::DropoutRows> groups = dropout_rows(op, rows, a.dropout, tokens);
  a.groups = groups.data();
  a.num_groups = static_cast<int64_t>(groups.size());
  Tensor y = torch::stable::new_empty(word, {tokens, columns});
  Tensor mean = torch::stable::new_empty(word, {tokens}, wide_type(a.dtype));
  Tensor rstd = torch::stable::new_empty(word, {tokens}, wide_type(a.dtype));
  a.y = y.mutable_data_ptr();
  a.mean = mean.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  FirstWrong wrong;
  torch::stable::parallel_for(0, tokens, row_grain(columns),
                              [&](int64_t begin, int64_t end) { wrong.found(cpu::embedding_forward(a, begin, end)); });
  wrong.refuse_if_any(op, a.lookups);
  return {y, mean, rstd};
}

namespace {

// Runs of equal ids, ascending, and each run's tokens in their order. `without`: an id that is left out.
std::vector<cpu::TokenRun> runs_of(const cpu::Lookup& lookup, int64_t tokens, int64_t without,
                                   std::vector<int64_t>& sorted) {
  sorted.resize(static_cast<size_t>(tokens));
  std::vector<cpu::TokenRun> runs;
  if (lookup.ids == nullptr) {
    for (int64_t i = 0; i < tokens; ++i) sorted[static_cast<size_t>(i)] = i;
    if (tokens > 0) runs.push_back({0, 0, tokens});
    return runs;
  }
  // Id and token in one number: no two are equal, so every sort is stable.
  for (int64_t i = 0; i < tokens; ++i) sorted[static_cast<size_t>(i)] = lookup.ids[i] * tokens + i;
  std::sort(sorted.begin(), sorted.end());
  int64_t previous = -1;
  for (int64_t i = 0; i < tokens; ++i) {
    int64_t& key = sorted[static_cast<size_t>(i)];
    const int64_t id = key / tokens;
    key -= id * tokens;
    if (id == without) continue;
    if (id != previous) runs.push_back({id, i, i});
    runs.back().end = i + 1;
    previous = id;
  }
  return runs;
}

Tensor sum_by_id(const cpu::Lookup& lookup, const Tensor& table, DType dtype, const void* dtotal, int64_t tokens,
                 int64_t without) {
  // All of it: the rows of a batch are a small part, and one fill of the whole is faster than one for each gap.
  Tensor out = torch::stable::new_zeros(table, {table.size(0), table.size(1)});
  std::vector<int64_t> sorted;
  const std::vector<cpu::TokenRun> runs = runs_of(lookup, tokens, without, sorted);
  cpu::EmbeddingSum a = {};
  a.dtype = dtype;
  a.dtotal = dtotal;
  a.sorted = sorted.data();
  a.runs = runs.data();
  a.out = out.mutable_data_ptr();
  a.columns = table.size(1);
  const int64_t count = static_cast<int64_t>(runs.size());
  const int64_t tasks = count * ((a.columns + cpu::kSumColumns - 1) / cpu::kSumColumns);
  const int64_t tokens_per_run = count > 0 ? (tokens + count - 1) / count : 1;
  torch::stable::parallel_for(0, tasks, row_grain(tokens_per_run * cpu::kSumColumns),
                              [&](int64_t begin, int64_t end) { cpu::embedding_sum(a, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embed_layer_norm_bwd(
    const Tensor& dy, const Tensor& input_ids, const Tensor& position_ids, std::optional<Tensor> token_type_ids,
    const Tensor& word, const Tensor& position, std::optional<Tensor> token_type, const Tensor& weight,
    const Tensor& mean, const Tensor& rstd, std::optional<Tensor> rows, std::optional<Tensor> dropout_state,
    double dropout_p, int64_t dropout_stream, int64_t padding_idx) {
  const char* op = "embed_layer_norm_bwd";
  cpu::EmbeddingBackward a = {};
  set_lookups(op, input_ids, position_ids, token_type_ids, word, position, token_type, a);
  const int64_t tokens = input_ids.size(0), columns = a.columns;
  const ScalarType wide = wide_type(a.dtype);
  check_shape(op, "dy", dy, {tokens, columns}, "(T, C)");
  check_dtype(op, "dy", dy, "word", word.scalar_type());
  check_last_stride(op, "dy", dy);
  a.weight = vector_of(op, "weight", weight, columns, word.scalar_type());
  a.mean = vector_of(op, "mean", mean, tokens, wide, "(T,)");
  a.rstd = vector_of(op, "rstd", rstd, tokens, wide, "(T,)");
  a.dy = dy.const_data_ptr();
  a.dy_stride = dy.stride(0);
  a.tokens = tokens;
  a.dropout = dropout_of(op, dropout_state, dropout_p, dropout_stream);
  const std::vector<cpu::DropoutRows> groups = dropout_rows(op, rows, a.dropout, tokens);
  a.groups = groups.data();
  a.num_groups = static_cast<int64_t>(groups.size());
  // The cut into chunks depends on the sizes alone, and with it the order of every sum.
  a.tokens_per_chunk = std::max<int64_t>(16, (tokens + 63) / 64);
  const int64_t chunks = (tokens + a.tokens_per_chunk - 1) / a.tokens_per_chunk;
  // Kept between calls where it is small: the system's first touch of new memory costs more than the sums in it.
  constexpr int64_t kKeptBytes = int64_t{16} << 20;
  const int64_t numbers = tokens * columns + chunks * 2 * columns, size = a.dtype == DType::kFloat64 ? 8 : 4;
  const bool kept = numbers * size <= kKeptBytes;
  Tensor own = torch::stable::new_empty(word, {kept ? 0 : numbers}, wide);
  a.dtotal = kept ? cpu::scratch(cpu::kScratchD, static_cast<size_t>(numbers * size)) : own.mutable_data_ptr();
  a.partials = static_cast<char*>(a.dtotal) + tokens * columns * size;
  FirstWrong wrong;
  torch::stable::parallel_for(0, chunks, 1,
                              [&](int64_t begin, int64_t end) { wrong.found(cpu::embedding_backward(a, begin, end)); });
  wrong.refuse_if_any(op, a.lookups);
  Tensor dw = torch::stable::new_empty(weight, {columns});
  Tensor db = torch::stable::new_empty(weight, {columns});
  void* const out[] = {dw.mutable_data_ptr(), db.mutable_data_ptr()};
  cpu::layer_norm_sum_partials(a.dtype, a.partials, chunks, 2, columns, out);
  Tensor dword = sum_by_id(a.lookups[0], word, a.dtype, a.dtotal, tokens, padding_idx);
  Tensor dposition = sum_by_id(a.lookups[1], position, a.dtype, a.dtotal, tokens, -1);
  Tensor dtoken_type = token_type.has_value() ? sum_by_id(a.lookups[2], *token_type, a.dtype, a.dtotal, tokens, -1)
                                              : nothing(word.scalar_type());
  return {dword, dposition, dtoken_type, dw, db};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) {
  m.impl("embed_layer_norm_fwd", TORCH_BOX(&dynabert::binding::embed_layer_norm_fwd));
  m.impl("embed_layer_norm_bwd", TORCH_BOX(&dynabert::binding::embed_layer_norm_bwd));
}
