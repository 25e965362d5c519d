// The Python module `dynabert_kernels._C`: what is not an op. Ops register themselves when the library is loaded.
#include <dynabert_build_facts.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/peak.h"
#include "cpu/task_costs.h"
#include "host/pack.h"
#ifdef USE_CUDA
#include "cuda/kernel_attributes.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict facts;
  const std::pair<const char*, const char*> built[] = {DYNABERT_BUILD_FACTS};
  for (const auto& [key, value] : built) facts[key] = value;
#ifdef USE_CUDA
  facts["with_cuda"] = true;
#else
  facts["with_cuda"] = false;
#endif
  return facts;
}

py::dict cpu_features() {
  py::dict facts;
  for (const auto& [name, found] : dynabert::cpu::processor_features()) facts[name.c_str()] = found;
  facts["isa"] = dynabert::cpu::isa_name(dynabert::cpu::active_isa());
  py::list names;
  for (const std::string& name : dynabert::cpu::available_isas()) names.append(name);
  facts["available"] = py::tuple(names);
  return facts;
}

int64_t packed_panel(const std::string& dtype) {
  using dynabert::DType;
  for (const auto& [name, value] : {std::pair{"float32", DType::kFloat32}, std::pair{"bfloat16", DType::kBFloat16}}) {
    if (dtype == name) return dynabert::cpu::packed_panel(value);
  }
  return 0;
}

int64_t run_at_peak(const std::string& products, int64_t turns) {
  using dynabert::cpu::Products;
  for (const auto& [name, kind] : {std::pair{"float32", Products::kFloat32}, std::pair{"bfloat16", Products::kBFloat16},
                                   std::pair{"int8", Products::kInt8}}) {
    if (products != name) continue;
    const py::gil_scoped_release others_may_run;
    return dynabert::cpu::run_at_peak(kind, turns);
  }
  throw py::value_error("run_at_peak: products are '" + products + "'; allowed: float32, bfloat16, int8");
}

using GemmSpanNumbers = std::tuple<int64_t, int64_t, int64_t, int64_t>;

std::pair<std::vector<int64_t>, std::vector<int64_t>> product_shares(const std::vector<GemmSpanNumbers>& spans,
                                                                     int64_t threads) {
  std::vector<dynabert::cpu::GemmSpan> read;
  for (const auto& [begin, end, n, k] : spans) read.push_back({begin, end, n, k});
  dynabert::cpu::SpanGemm gemm = {};
  gemm.dtype = dynabert::DType::kFloat32;
  gemm.spans = read.data();
  gemm.num_spans = static_cast<int64_t>(read.size());
  dynabert::cpu::plan_gemm(gemm, threads);
  std::vector<int64_t> costs = dynabert::cpu::task_costs(gemm);
  std::vector<int64_t> borders = dynabert::cpu::fair_borders(costs, threads);
  return {std::move(costs), std::move(borders)};
}

#ifdef USE_CUDA
py::list kernel_attributes() {
  py::list found;
  for (const dynabert::cuda::KernelAttributes& kernel : dynabert::cuda::kernel_attributes()) {
    py::dict entry;
    entry["name"] = kernel.name;
    entry["registers"] = kernel.registers;
    entry["local_bytes"] = kernel.local_bytes;
    entry["shared_bytes"] = kernel.shared_bytes;
    entry["max_threads"] = kernel.max_threads;
    entry["architecture"] = kernel.architecture;
    found.append(entry);
  }
  return found;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  // A wrong DYNABERT_CPU_ISA ends the import with its message, and not the first op in the middle of a run.
  dynabert::cpu::active_isa();
  m.doc() = "Native part of dynabert_kernels.";
  m.def("build_info", &build_info,
        "Facts of this build: compiler, flags, torch, torch_target, cuda, cuda_archs, commit, with_cuda.");
  m.def("cpu_features", &cpu_features,
        "What the processor has, the instruction set that the CPU kernels use (isa) and those they could (available).");
  m.def("set_cpu_isa", &dynabert::cpu::set_isa, py::arg("name"),
        "Forces the instruction set of the CPU kernels: generic, avx2, avx512, amx, amx-emulated, or "
        "auto for the best. For tests. "
        "ValueError on a name that is unknown or not available here.");
  m.def("packed_panel", &packed_panel, py::arg("dtype"),
        "Outputs in a panel of packed weights of this dtype ('float32', 'bfloat16', ...) with the instruction set in "
        "use; 0 where such weights are not packed.");
  m.def("fair_borders", &dynabert::cpu::fair_borders, py::arg("costs"), py::arg("parts"),
        "Cuts tasks of these costs, in their order, into parts of nearly equal cost: parts + 1 borders. For tests.");
  m.def("product_shares", &product_shares, py::arg("spans"), py::arg("threads"),
        "How a product over spans (first row, last row + 1, outputs, inputs) is shared: what each task costs, and the "
        "borders between the threads. For tests.");
  m.def("run_at_peak", &run_at_peak, py::arg("products"), py::arg("turns"),
        "Does 12 x turns of the instruction that products of 'float32', 'bfloat16' or 'int8' are made of, on registers "
        "only, on this thread, without the interpreter's lock. Returns how many multiplications that were; 0 where the "
        "instruction set in use has none. Divided by the time it is the ceiling of any such product.");
  m.def("pack_sequences", &dynabert::host::pack_sequences, py::arg("sequences"), py::arg("position_offset") = 0,
        "Lays sequences of token ids end to end: (ids int64 (T,), positions int64 (T,), cu_seqlens int32 (B+1,), "
        "longest length), as numpy arrays.");
#ifdef USE_CUDA
  m.def("kernel_attributes", &kernel_attributes,
        "What the driver says of each CUDA kernel; RuntimeError without a driver or device.");
#endif
}
