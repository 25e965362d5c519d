// Checks of what comes in from PyTorch, and the plain structs that go out to the kernels.
//
// A wrong argument throws std::invalid_argument, which arrives in Python as ValueError. Messages have the form
// `op: what is wrong; what was given; what is allowed`.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dynabert/element.h"

namespace dynabert::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << op << ": ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

inline DType float_dtype(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      refuse(op, name, " is ", torch::headeronly::toString(tensor.scalar_type()),
             "; allowed: float32, bfloat16, float16, float64");
  }
}

// The dtype of means, variances and log-sums.
inline ScalarType wide_type(DType dtype) { return dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }
inline DType wide_dtype(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

// The empty tensor that stands for a result nobody asked for. Made without the dispatcher: a sub-layer makes up to six.
inline Tensor nothing(ScalarType dtype) {
  const int64_t size = 0, stride = 1;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      1, &size, &stride, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Any number of dimensions; a negative expected size stands for any size.
inline void check_shape(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected,
                        const char* letters) {
  bool fits = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t i = 0;
  for (int64_t want : expected) {
    fits = fits && (want < 0 || tensor.size(i) == want);
    ++i;
  }
  if (fits) return;
  std::ostringstream wanted;
  const char* between = "";
  for (int64_t want : expected) {
    wanted << between;
    if (want < 0) {
      wanted << "any";
    } else {
      wanted << want;
    }
    between = ", ";
  }
  refuse(op, name, " has shape ", shape_of(tensor), "; allowed: ", letters, " = (", wanted.str(), ")");
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, const char* first, ScalarType dtype) {
  if (tensor.scalar_type() != dtype) {
    refuse(op, name, " is ", torch::headeronly::toString(tensor.scalar_type()), ", ", first, " is ",
           torch::headeronly::toString(dtype), "; allowed: one dtype; convert one of them");
  }
}

// Neighbours of the last dimension lie side by side. A size of 0 or 1 has no neighbours, nor has an empty tensor.
inline void check_last_stride(const char* op, const char* name, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1 && tensor.numel() > 0) {
    refuse(op, name, " has stride ", tensor.stride(last), " in its last dimension; allowed: 1; pass it contiguous");
  }
}

// A vector of n numbers of x's dtype, side by side.
inline const void* vector_of(const char* op, const char* name, const Tensor& tensor, int64_t n, ScalarType dtype,
                             const char* letters = "(C,)") {
  check_shape(op, name, tensor, {n}, letters);
  check_dtype(op, name, tensor, "x", dtype);
  check_last_stride(op, name, tensor);
  return tensor.const_data_ptr();
}

// The int32 numbers of a plan or of sequence borders, read where they lie.
inline const int32_t* int32_vector(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.dim() != 1) refuse(op, name, " has shape ", shape_of(tensor), "; allowed: one dimension");
  if (tensor.scalar_type() != ScalarType::Int) {
    refuse(op, name, " is ", torch::headeronly::toString(tensor.scalar_type()), "; allowed: int32");
  }
  check_last_stride(op, name, tensor);
  if (!tensor.is_cpu()) refuse(op, name, " is not on the CPU; move it there");
  return static_cast<const int32_t*>(tensor.const_data_ptr());
}

// Rows begin to end - 1, with `count` active heads, neurons or features; `group` is the first group among them.
struct Span {
  int64_t begin, end, count;
  int64_t group;
};

// The groups of a plan that have rows, in order. Throws when borders go backwards, reach past the tokens, or when a
// count is negative or larger than the bound. `counts` null: every group has `bound`.
inline std::vector<Span> read_spans(const char* op, const Tensor& rows, const std::optional<Tensor>& counts,
                                    const char* counts_name, int64_t unit, int64_t bound, int64_t tokens) {
  const int32_t* borders = int32_vector(op, "rows", rows);
  const int64_t groups = rows.size(0) - 1;
  if (groups < 0) refuse(op, "rows is empty; allowed: one border more than groups, the first 0");
  if (borders[0] != 0) refuse(op, "rows starts at ", borders[0], "; allowed: 0");
  const int32_t* active = nullptr;
  if (counts.has_value()) {
    active = int32_vector(op, counts_name, *counts);
    if (counts->size(0) != groups) {
      refuse(op, counts_name, " has ", counts->size(0), " numbers; rows has borders of ", groups, " groups");
    }
  }
  std::vector<Span> spans;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = borders[g], end = borders[g + 1];
    if (end < begin) refuse(op, "rows goes backwards from ", begin, " to ", end, " at group ", g);
    if (end > tokens) refuse(op, "rows reaches ", end, " at group ", g, "; x has ", tokens, " rows");
    int64_t count = bound;
    if (active != nullptr) {
      count = static_cast<int64_t>(active[g]) * unit;
      if (count < 0 || count > bound) {
        refuse(op, counts_name, "[", g, "] is ", active[g], "; allowed: 0 to ", bound / unit);
      }
    }
    if (end > begin) spans.push_back({begin, end, count, g});
  }
  return spans;
}

// Neighbours with equal counts become one span: fewer, larger matrix products.
inline std::vector<Span> merge_neighbours(const std::vector<Span>& spans) {
  std::vector<Span> merged;
  for (const Span& span : spans) {
    if (!merged.empty() && merged.back().end == span.begin && merged.back().count == span.count) {
      merged.back().end = span.end;
    } else {
      merged.push_back(span);
    }
  }
  return merged;
}

// What one group's rows are dropped with. `state` null or p 0: nothing is dropped.
inline Dropout dropout_of(const char* op, const std::optional<Tensor>& state, double p, int64_t stream) {
  Dropout dropout;
  if (!(p >= 0.0 && p < 1.0)) refuse(op, "the dropout probability is ", p, "; allowed: 0 up to but not including 1");
  if (p == 0.0 || !state.has_value()) return dropout;
  if (state->dim() != 1 || state->size(0) != 2 || state->scalar_type() != ScalarType::Long || !state->is_contiguous()) {
    refuse(op, "dropout_state has shape ", shape_of(*state), "; allowed: two int64 numbers, [seed, offset]");
  }
  const int64_t* numbers = static_cast<const int64_t*>(state->const_data_ptr());
  dropout.seed = static_cast<uint64_t>(numbers[0]);
  dropout.offset = static_cast<uint64_t>(numbers[1]);
  dropout.threshold = static_cast<uint32_t>(std::floor(p * 4294967296.0));
  dropout.stream = static_cast<uint32_t>(stream) << 12;
  dropout.scale = 1.0 / (1.0 - p);
  return dropout;
}

inline Dropout of_group(Dropout dropout, int64_t group) {
  dropout.offset += static_cast<uint64_t>(group);
  return dropout;
}

inline const char* at(const void* base, int64_t elements, DType dtype) {
  return static_cast<const char*>(base) + elements * element_size(dtype);
}
inline char* at(void* base, int64_t elements, DType dtype) {
  return static_cast<char*>(base) + elements * element_size(dtype);
}

// Zeros in columns first to last - 1 of rows begin to end - 1.
inline void zero_columns(void* base, int64_t stride, int64_t begin, int64_t end, int64_t first, int64_t last,
                         DType dtype) {
  if (first >= last) return;
  for (int64_t row = begin; row < end; ++row) {
    std::memset(at(base, row * stride + first, dtype), 0, static_cast<size_t>((last - first) * element_size(dtype)));
  }
}

inline Activation activation_of(const char* op, int64_t code) {
  if (code < 0 || code > 3) refuse(op, "activation is ", code, "; allowed: 0 none, 1 gelu, 2 gelu_tanh, 3 relu");
  return static_cast<Activation>(code);
}

// How many rows of `columns` numbers a thread should have before another thread is worth waking (about 4 us of work).
inline int64_t row_grain(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)); }

}  // namespace dynabert::binding
