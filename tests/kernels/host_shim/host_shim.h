// Runs CUDA device code on the CPU, so that sanitizers can look at it: one std::thread for each CUDA thread.
//
// Include this before an untouched .cuh. A block's threads run at once, its blocks one after another (so `__shared__`
// can be a static: the block before is done with it). Barriers are real barriers, so the thread sanitizer sees what a
// missing one would race on, and the address sanitizer sees every access outside an allocation or a shared array.
//
// Limits: whole-warp shuffles only, no barrier after some threads returned, no grid-wide barrier, no tensor cores, and
// slow: keep rows in single digits.
#pragma once

#define DYNABERT_HOST_SHIM 1

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <source_location>
#include <string>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace shim {

constexpr int kWarp = 32;

struct Warp {
  std::barrier<> barrier{kWarp};
  unsigned char slot[kWarp][16];
};

struct Block {
  std::barrier<> barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  explicit Block(int threads) : barrier(threads) {
    if (threads % kWarp != 0) std::abort();
    for (int i = 0; i < threads / kWarp; ++i) warps.push_back(std::make_unique<Warp>());
  }
};

inline Block* block = nullptr;

// A barrier of the code under test is known by where it stands. One may be dropped: a sanitizer must miss it.
inline std::string dropped;
inline bool listing = false;  // only then are places collected: the lock would order the threads and hide races
inline std::mutex listing_mutex;
inline std::set<std::string> places;

inline std::string place_of(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

// Every thread of the warp gives a value and takes the one of lane `from`.
template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) <= 16);
  Warp& warp = *block->warps[threadIdx.x / kWarp];
  std::memcpy(warp.slot[threadIdx.x % kWarp], &value, sizeof value);
  warp.barrier.arrive_and_wait();
  T result;
  std::memcpy(&result, warp.slot[from], sizeof result);
  warp.barrier.arrive_and_wait();
  return result;
}

// kernel<<<grid, threads>>>(): call it as launch(grid, threads, [&] { kernel(...); }).
template <class Kernel>
void launch(dim3 grid, int threads, Kernel&& kernel) {
  gridDim = grid;
  blockDim = dim3(threads);
  Block running(threads);
  block = &running;
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      threadIdx = dim3(t, 0, 0);
      for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
          for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y, z);
            kernel();
            running.barrier.arrive_and_wait();
          }
        }
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  block = nullptr;
}

// --drop FILE:LINE leaves out that barrier, --sites prints the places of all barriers; the rest is the caller's.
inline std::vector<std::string> arguments(int argc, char** argv) {
  std::vector<std::string> rest;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--drop" && i + 1 < argc) {
      dropped = argv[++i];
    } else if (argument == "--sites") {
      listing = true;
    } else {
      rest.push_back(argument);
    }
  }
  return rest;
}

inline void print_sites() {
  for (const std::string& place : places) std::printf("site %s\n", place.c_str());
}

}  // namespace shim

inline void __syncthreads(const std::source_location where = std::source_location::current()) {
  if (shim::listing) {
    const std::lock_guard<std::mutex> lock(shim::listing_mutex);
    shim::places.insert(shim::place_of(where));
  }
  if (!shim::dropped.empty() && shim::place_of(where) == shim::dropped) return;
  shim::block->barrier.arrive_and_wait();
}
inline void __syncwarp(unsigned = 0xffffffffu) {
  shim::block->warps[threadIdx.x / shim::kWarp]->barrier.arrive_and_wait();
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return shim::exchange(value, static_cast<int>(threadIdx.x % shim::kWarp) ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return shim::exchange(value, lane);
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

struct __half {
  _Float16 value;
};
inline float __half2float(__half value) { return static_cast<float>(value.value); }
inline __half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }
