// embed_layer_norm on a CUDA device: check, allocate, guard the device, launch on PyTorch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "cuda/embedding.h"
#include "torch/arguments.h"
#include "torch/cuda_stream.h"
#include "torch/stable_sort.h"

namespace dynabert::binding {
namespace {

constexpr int kTables = 3;
const char* const kIdNames[kTables] = {"input_ids", "position_ids", "token_type_ids"};
const char* const kTableNames[kTables] = {"word", "position", "token_type"};

void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& word) {
  if (!tensor.is_cuda() || tensor.get_device_index() != word.get_device_index()) {
    refuse(op, name, " is not on CUDA device ", word.get_device_index(), ", where word is; move it there");
  }
}

DType check_word(const char* op, const Tensor& word) {
  check_shape(op, "word", word, {-1, -1}, "(V, C)");
  const DType dtype = float_dtype(op, "word", word);
  if (dtype == DType::kFloat64) refuse(op, "word is Double; allowed on CUDA: float32, bfloat16, float16");
  if (word.size(1) < 1 || word.size(1) > cuda::kMaxEmbeddingColumns) {
    refuse(op, "word has shape ", shape_of(word), "; allowed on CUDA: 1 to ", cuda::kMaxEmbeddingColumns, " columns");
  }
  return dtype;
}

cuda::EmbeddingLookup lookup_of(const char* op, int index, const std::optional<Tensor>& ids,
                                const std::optional<Tensor>& table, const Tensor& word, int64_t tokens) {
  const char* name = kTableNames[index];
  if (!table.has_value()) {
    if (ids.has_value()) refuse(op, kIdNames[index], " given, but not ", name, "; leave them out, or give the table");
    return {nullptr, nullptr, -1, 0};
  }
  check_device(op, name, *table, word);
  check_shape(op, name, *table, {-1, word.size(1)}, "(rows, C)");
  check_dtype(op, name, *table, "word", word.scalar_type());
  check_last_stride(op, name, *table);
  cuda::EmbeddingLookup lookup = {nullptr, table->const_data_ptr(), table->size(0), table->stride(0)};
  if (!ids.has_value()) return lookup;
  check_device(op, kIdNames[index], *ids, word);
  check_shape(op, kIdNames[index], *ids, {tokens}, "(T,)");
  if (ids->scalar_type() != ScalarType::Long) {
    refuse(op, kIdNames[index], " is ", torch::headeronly::toString(ids->scalar_type()), "; allowed: int64");
  }
  check_last_stride(op, kIdNames[index], *ids);
  lookup.ids = static_cast<const int64_t*>(ids->const_data_ptr());
  return lookup;
}

template <class Arguments>
void set_lookups(const char* op, const Tensor& input_ids, const Tensor& position_ids,
                 const std::optional<Tensor>& token_type_ids, const Tensor& word, const Tensor& position,
                 const std::optional<Tensor>& token_type, Arguments& a) {
  check_shape(op, "input_ids", input_ids, {-1}, "(T,)");
  a.tokens = input_ids.size(0);
  a.columns = word.size(1);
  if (a.tokens > 0x7fffffff) refuse(op, "input_ids has ", a.tokens, " tokens; allowed: up to 2147483647");
  a.lookups[0] = lookup_of(op, 0, input_ids, word, word, a.tokens);
  a.lookups[1] = lookup_of(op, 1, position_ids, position, word, a.tokens);
  a.lookups[2] = lookup_of(op, 2, token_type_ids, token_type, word, a.tokens);
}

// The state stays on the device: kernels read seed and offset there.
cuda::EmbeddingDropout dropout_on_device(const char* op, const std::optional<Tensor>& state,
                                         const std::optional<Tensor>& rows, double p, int64_t stream,
                                         const Tensor& word) {
  if (!(p >= 0.0 && p < 1.0)) refuse(op, "the dropout probability is ", p, "; allowed: 0 up to but not including 1");
  cuda::EmbeddingDropout dropout = {};
  if (p == 0.0 || !state.has_value()) return dropout;
  check_device(op, "dropout_state", *state, word);
  if (state->dim() != 1 || state->size(0) != 2 || state->scalar_type() != ScalarType::Long || !state->is_contiguous()) {
    refuse(op, "dropout_state has shape ", shape_of(*state), "; allowed: two int64 numbers, [seed, offset]");
  }
  dropout.state = static_cast<const int64_t*>(state->const_data_ptr());
  if (rows.has_value()) {
    check_device(op, "rows", *rows, word);
    if (rows->dim() != 1 || rows->size(0) == 0 || rows->scalar_type() != ScalarType::Int || !rows->is_contiguous()) {
      refuse(op, "rows has shape ", shape_of(*rows), "; allowed: (G+1,) int32 borders, contiguous");
    }
    dropout.rows = static_cast<const int32_t*>(rows->const_data_ptr());
    dropout.num_groups = static_cast<int>(rows->size(0) - 1);
  }
  dropout.stream = static_cast<uint32_t>(stream) << 12;
  dropout.threshold = static_cast<uint32_t>(std::floor(p * 4294967296.0));
  dropout.scale = static_cast<float>(1.0 / (1.0 - p));
  return dropout;
}

const void* parameter(const char* op, const char* name, const Tensor& tensor, const Tensor& word) {
  check_device(op, name, tensor, word);
  return vector_of(op, name, tensor, word.size(1), word.scalar_type());
}

const float* statistic(const char* op, const char* name, const Tensor& tensor, const Tensor& word, int64_t tokens) {
  check_device(op, name, tensor, word);
  check_shape(op, name, tensor, {tokens}, "(T,)");
  check_dtype(op, name, tensor, "a statistic", ScalarType::Float);
  check_last_stride(op, name, tensor);
  return tensor.const_data_ptr<float>();
}

void check_status(const char* op, cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": the launch failed: " + cudaGetErrorString(status));
  }
}

std::tuple<Tensor, Tensor, Tensor> embed_layer_norm_fwd(const Tensor& input_ids, const Tensor& position_ids,
                                                        std::optional<Tensor> token_type_ids, const Tensor& word,
                                                        const Tensor& position, std::optional<Tensor> token_type,
                                                        const Tensor& weight, const Tensor& bias,
                                                        std::optional<Tensor> rows, std::optional<Tensor> dropout_state,
                                                        double eps, double dropout_p, int64_t dropout_stream,
                                                        int64_t padding_idx) {
  const char* op = "embed_layer_norm_fwd";
  const DType dtype = check_word(op, word);
  const torch::stable::accelerator::DeviceGuard guard(word.get_device_index());
  cuda::EmbedLayerNormForward a = {};
  set_lookups(op, input_ids, position_ids, token_type_ids, word, position, token_type, a);
  a.dropout = dropout_on_device(op, dropout_state, rows, dropout_p, dropout_stream, word);
  a.weight = parameter(op, "weight", weight, word);
  a.bias = parameter(op, "bias", bias, word);
  a.eps = static_cast<float>(eps);
  Tensor y = torch::stable::new_empty(word, {a.tokens, a.columns});
  Tensor mean = torch::stable::new_empty(word, {a.tokens}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(word, {a.tokens}, ScalarType::Float);
  a.y = y.mutable_data_ptr();
  a.mean = mean.mutable_data_ptr<float>();
  a.rstd = rstd.mutable_data_ptr<float>();
  if (a.tokens > 0) {  // an empty grid is a launch error
    check_status(op, cuda::embed_layer_norm_forward(dtype, a, current_stream(word.get_device_index())));
  }
  return {y, mean, rstd};
}

// The ids of each table one below the other, no ids being all of type 0.
Tensor stacked_ids(const char* op, const cuda::EmbeddingLookup (&lookups)[kTables], int tables, const Tensor& input_ids,
                   cudaStream_t stream) {
  const int64_t tokens = input_ids.size(0);
  Tensor stacked = torch::stable::new_empty(input_ids, {tables, tokens});
  int64_t* row = static_cast<int64_t*>(stacked.mutable_data_ptr());
  const size_t bytes = static_cast<size_t>(tokens) * sizeof(int64_t);
  for (int i = 0; i < tables; ++i, row += tokens) {
    check_status(op, lookups[i].ids != nullptr
                         ? cudaMemcpyAsync(row, lookups[i].ids, bytes, cudaMemcpyDeviceToDevice, stream)
                         : cudaMemsetAsync(row, 0, bytes, stream));
  }
  return stacked;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embed_layer_norm_bwd(
    const Tensor& dy, const Tensor& input_ids, const Tensor& position_ids, std::optional<Tensor> token_type_ids,
    const Tensor& word, const Tensor& position, std::optional<Tensor> token_type, const Tensor& weight,
    const Tensor& mean, const Tensor& rstd, std::optional<Tensor> rows, std::optional<Tensor> dropout_state,
    double dropout_p, int64_t dropout_stream, int64_t padding_idx) {
  const char* op = "embed_layer_norm_bwd";
  const DType dtype = check_word(op, word);
  const torch::stable::accelerator::DeviceGuard guard(word.get_device_index());
  cuda::EmbedLayerNormBackward a = {};
  set_lookups(op, input_ids, position_ids, token_type_ids, word, position, token_type, a);
  a.dropout = dropout_on_device(op, dropout_state, rows, dropout_p, dropout_stream, word);
  check_device(op, "dy", dy, word);
  check_shape(op, "dy", dy, {a.tokens, a.columns}, "(T, C)");
  check_dtype(op, "dy", dy, "word", word.scalar_type());
  check_last_stride(op, "dy", dy);
  a.dy = dy.const_data_ptr();
  a.dy_stride = dy.stride(0);
  a.weight = parameter(op, "weight", weight, word);
  a.mean = statistic(op, "mean", mean, word, a.tokens);
  a.rstd = statistic(op, "rstd", rstd, word, a.tokens);
  // Memory speed: a batch writes few of a vocabulary's rows.
  Tensor dword = torch::stable::new_zeros(word, {word.size(0), a.columns});
  Tensor dposition = torch::stable::new_zeros(position, {position.size(0), a.columns});
  const int64_t types = token_type.has_value() ? token_type->size(0) : 0;
  Tensor dtoken_type =
      token_type.has_value() ? torch::stable::new_zeros(word, {types, a.columns}) : torch::stable::new_empty(word, {0});
  if (a.tokens == 0) {
    return {dword, dposition, dtoken_type, torch::stable::new_zeros(weight, {a.columns}),
            torch::stable::new_zeros(weight, {a.columns})};
  }
  const cudaStream_t stream = current_stream(word.get_device_index());
  Tensor dw = torch::stable::new_empty(weight, {a.columns});
  Tensor db = torch::stable::new_empty(weight, {a.columns});
  check_status(op, cuda::embed_layer_norm_partials(a.tokens, a.columns, word.get_device_index(), &a.num_partials));
  Tensor partials = torch::stable::new_empty(word, {a.num_partials, 2, a.columns}, ScalarType::Float);
  Tensor dh = torch::stable::new_empty(word, {a.tokens, a.columns}, ScalarType::Float);
  a.dw = dw.mutable_data_ptr();
  a.db = db.mutable_data_ptr();
  a.partials = partials.mutable_data_ptr<float>();
  a.dh = dh.mutable_data_ptr<float>();
  check_status(op, cuda::embed_layer_norm_backward(dtype, a, stream));

  cuda::SumsById sums = {};
  sums.tables = token_type.has_value() ? 3 : 2;
  sums.tokens = a.tokens;
  sums.columns = a.columns;
  const auto [ids, order] = stable_sort(stacked_ids(op, a.lookups, sums.tables, input_ids, stream));
  Tensor pieces =
      torch::stable::new_empty(word, {sums.tables, cuda::sums_by_id_partials(a.tokens), a.columns}, ScalarType::Float);
  sums.rows = a.dh;
  sums.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  sums.order = static_cast<const int64_t*>(order.const_data_ptr());
  sums.partials = pieces.mutable_data_ptr<float>();
  const std::array<Tensor*, kTables> outputs = {&dword, &dposition, &dtoken_type};
  for (int i = 0; i < sums.tables; ++i) {
    sums.out[i] = outputs[static_cast<size_t>(i)]->mutable_data_ptr();
    sums.size[i] = a.lookups[i].size;
  }
  sums.left_out = padding_idx;
  check_status(op, cuda::sums_by_id(dtype, sums, stream));
  return {dword, dposition, dtoken_type, dw, db};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cuda, CUDA, m) {
  m.impl("embed_layer_norm_fwd", TORCH_BOX(&dynabert::binding::embed_layer_norm_fwd));
  m.impl("embed_layer_norm_bwd", TORCH_BOX(&dynabert::binding::embed_layer_norm_bwd));
}
