// The most multiplications that this processor can do: what a measured share of the ceiling is a share of.
#pragma once

#include <cstdint>

#include "dynabert/element.h"

namespace dynabert::cpu {

// Runs the instruction that products of this kind are made of 12 times, on registers only and with as many independent
// sums as there is room for, `turns` times, and returns how many multiplications that were. 0 where the kernels of the
// instruction set in use have no such instruction for it. Kinds: float32 and bfloat16 products, and those of bytes.
enum class Products { kFloat32, kBFloat16, kInt8 };
int64_t run_at_peak(Products products, int64_t turns);

}  // namespace dynabert::cpu
