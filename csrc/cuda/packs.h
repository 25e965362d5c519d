// When rows can be read in packs of 16 bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "dynabert/scalar.cuh"

namespace dynabert::cuda {

// Whether packs of 16 bytes can be used: every row of every matrix starts at a multiple of 16 bytes and ends with a
// whole pack.
template <class T>
bool packs_fit(int64_t columns, std::initializer_list<const void*> pointers, std::initializer_list<int64_t> strides) {
  const auto off = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 != 0; };
  const auto odd = [](int64_t elements) { return elements % kWidestVector<T> != 0; };
  return !odd(columns) && std::none_of(pointers.begin(), pointers.end(), off) &&
         std::none_of(strides.begin(), strides.end(), odd);
}

}  // namespace dynabert::cuda
