#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace dynabert::cpu {
namespace {

struct Buffer {
  void* memory = nullptr;
  size_t bytes = 0;

  ~Buffer() { std::free(memory); }
};

thread_local Buffer buffers[kScratchSlots];

}  // namespace

void* scratch(ScratchSlot slot, size_t bytes) {
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    void* memory = std::aligned_alloc(64, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    std::free(buffer.memory);
    buffer.memory = memory;
    buffer.bytes = rounded;
  }
  return buffer.memory;
}

}  // namespace dynabert::cpu
