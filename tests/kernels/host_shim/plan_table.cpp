// plan_table's device code on the CPU against plain loops.
//
//   plan_table [--sites] [--drop FILE:LINE] [--plant] [CASE]
//
// Prints one line for each case. Exit code 1 where a number is wrong. --plant takes one sequence too many: the address
// sanitizer must see it.
#include "host_shim.h"

#include "dynabert/plan_table.cuh"

#include <algorithm>

namespace {

using namespace dynabert;

bool failed = false;
bool planted = false;

// Groups of `sizes` sequences; `sequences` of them are there, of lengths that differ.
void run(const char* name, int sequences, std::vector<int32_t> sizes, int layers) {
  constexpr int kThreads = 64;
  const int groups = static_cast<int>(sizes.size());
  std::vector<int32_t> seqlens(sequences), heads(groups * layers), neurons(groups * layers);
  for (int i = 0; i < sequences; ++i) seqlens[i] = i * 7 % 13;  // a length of 0 among them
  for (int i = 0; i < groups * layers; ++i) {
    heads[i] = i % 12;
    neurons[i] = 100 + i;
  }
  std::vector<int32_t> table(groups + 1 + 2 * groups * layers, -1), cu_seqlens(sequences + 1, -1);
  table.shrink_to_fit();
  const PlanNumbers plan = {seqlens.data(),
                            sizes.data(),
                            heads.data(),
                            neurons.data(),
                            table.data(),
                            cu_seqlens.data(),
                            sequences + (planted ? 1 : 0),
                            groups,
                            layers};
  shim::launch(1, kThreads, [&] { plan_table_kernel<kThreads>(plan); });

  std::vector<int32_t> borders = {0}, expected = {0};
  for (int32_t length : seqlens) borders.push_back(borders.back() + length);
  int owned = 0;
  for (int32_t size : sizes) expected.push_back(borders[std::clamp(owned += size, 0, sequences)]);
  for (int layer = 0; layer < layers; ++layer) {
    for (const auto* counts : {&heads, &neurons}) {
      for (int g = 0; g < groups; ++g) expected.push_back((*counts)[g * layers + layer]);
    }
  }
  const bool right = borders == cu_seqlens && expected == table;
  std::printf("%s %s\n", name, right ? "right" : "WRONG");
  failed = failed || !right;
}

}  // namespace

int main(int argc, char** argv) {
  std::string only;
  for (const std::string& argument : shim::arguments(argc, argv)) {
    if (argument == "--plant") {
      planted = true;
    } else {
      only = argument;
    }
  }
  const auto wanted = [&](const char* name) { return only.empty() || only == name; };
  if (wanted("one")) run("one", 1, {1}, 1);
  if (wanted("no-sequences")) run("no-sequences", 0, {0}, 2);
  if (wanted("empty-groups")) run("empty-groups", 9, {4, 0, 3, 0, 2}, 3);
  if (wanted("places-not-used")) run("places-not-used", 70, {30, 20}, 4);  // a turn of the block, and more
  if (wanted("many-groups")) run("many-groups", 300, std::vector<int32_t>(130, 2), 2);
  if (wanted("sizes-lie")) run("sizes-lie", 5, {-3, 4, 1000000}, 1);
  shim::print_sites();
  return failed ? 1 : 0;
}
