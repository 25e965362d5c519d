// plan_table on the CPU: a few hundred numbers, checked while they are copied.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "torch/arguments.h"

namespace dynabert::binding {
namespace {

const int32_t* counts_of(const char* op, const char* name, const Tensor& counts, int64_t groups, int64_t layers) {
  check_shape(op, name, counts, {groups, layers}, "(G, L)");
  if (counts.scalar_type() != ScalarType::Int) {
    refuse(op, name, " is ", torch::headeronly::toString(counts.scalar_type()), "; allowed: int32");
  }
  if (!counts.is_cpu()) refuse(op, name, " is not on the CPU; move it there");
  if (!counts.is_contiguous()) refuse(op, name, " is not contiguous; pass it contiguous");
  return static_cast<const int32_t*>(counts.const_data_ptr());
}

std::tuple<Tensor, Tensor> plan_table(const Tensor& seqlens, const Tensor& group_sizes, const Tensor& heads,
                                      const Tensor& neurons) {
  const char* op = "plan_table";
  const int32_t* lengths = int32_vector(op, "seqlens", seqlens);
  const int32_t* sizes = int32_vector(op, "group_sizes", group_sizes);
  const int64_t sequences = seqlens.size(0), groups = group_sizes.size(0);
  if (groups == 0) refuse(op, "no group given; give at least one");
  check_shape(op, "heads", heads, {groups, -1}, "(G, L)");
  const int64_t layers = heads.size(1);
  const int32_t* head_counts = counts_of(op, "heads", heads, groups, layers);
  const int32_t* neuron_counts = counts_of(op, "neurons", neurons, groups, layers);
  Tensor table = torch::stable::new_empty(seqlens, {groups + 1 + 2 * groups * layers});
  Tensor cu_seqlens = torch::stable::new_empty(seqlens, {sequences + 1});
  int32_t* rows = static_cast<int32_t*>(table.mutable_data_ptr());
  int32_t* borders = static_cast<int32_t*>(cu_seqlens.mutable_data_ptr());

  int64_t tokens = 0;
  borders[0] = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    if (lengths[i] < 0) refuse(op, "seqlens[", i, "] is ", lengths[i], "; allowed: 0 or more");
    tokens += lengths[i];
    if (tokens > std::numeric_limits<int32_t>::max()) {
      refuse(op, "seqlens reach ", tokens, " tokens at sequence ", i, "; allowed: up to 2147483647; split the batch");
    }
    borders[i + 1] = static_cast<int32_t>(tokens);
  }
  int64_t owned = 0;
  rows[0] = 0;
  for (int64_t g = 0; g < groups; ++g) {
    if (sizes[g] < 0) refuse(op, "group_sizes[", g, "] is ", sizes[g], "; allowed: 0 or more");
    owned += sizes[g];
    if (owned > sequences) {
      refuse(op, "group_sizes reach ", owned, " sequences at group ", g, "; allowed: up to seqlens' ", sequences);
    }
    rows[g + 1] = borders[owned];
  }
  int32_t* out = rows + groups + 1;
  for (int64_t layer = 0; layer < layers; ++layer, out += 2 * groups) {
    for (int64_t g = 0; g < groups; ++g) {
      const int32_t own_heads = head_counts[g * layers + layer], own_neurons = neuron_counts[g * layers + layer];
      if (own_heads < 0 || own_neurons < 0 || (own_heads == 0) != (own_neurons == 0)) {
        refuse(op, "group ", g, " has ", own_heads, " heads and ", own_neurons, " neurons in layer ", layer,
               "; allowed: 1 or more of both, or 0 of both to skip the layer");
      }
      out[g] = own_heads;
      out[groups + g] = own_neurons;
    }
  }
  return {table, cu_seqlens};
}

}  // namespace
}  // namespace dynabert::binding

STABLE_TORCH_LIBRARY_IMPL(dynabert_cpu, CPU, m) { m.impl("plan_table", TORCH_BOX(&dynabert::binding::plan_table)); }
