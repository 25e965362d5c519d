// What the driver says of each kernel in this library. No CUDA header is needed to include this one.
#pragma once

#include <string>
#include <vector>

namespace dynabert::cuda {

// A kernel that can be asked about: its name with its template arguments, and the address that stands for it here.
struct KernelHandle {
  std::string name;
  const void* function;
};

struct KernelAttributes {
  std::string name;
  int registers;
  int local_bytes;   // per thread: spilled registers and arrays the compiler could not keep in registers
  int shared_bytes;  // static shared memory of a block
  int max_threads;   // largest block that can be launched
  int architecture;  // 80, 90: the machine code the driver picked
};

// Every kernel of the library. Throws std::runtime_error where there is no driver or no device.
std::vector<KernelAttributes> kernel_attributes();

}  // namespace dynabert::cuda
