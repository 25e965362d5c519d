// Working memory of one thread, kept between calls: a panel of weights, a block of packed rows, keys, one row. A few
// MB.
#pragma once

#include <cstddef>

namespace dynabert::cpu {

enum ScratchSlot { kScratchA, kScratchB, kScratchC, kScratchD, kScratchE, kScratchSlots };

// At least `bytes` bytes, aligned to 64, not initialised. A later call with the same slot in this thread may move it.
void* scratch(ScratchSlot slot, size_t bytes);

// Always inlined: a copy of its own might be compiled with the instructions of one caller and linked for all.
template <class T>
inline __attribute__((always_inline)) T* scratch_of(ScratchSlot slot, size_t count) {
  return static_cast<T*>(scratch(slot, count * sizeof(T)));
}

}  // namespace dynabert::cpu
