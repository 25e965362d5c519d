// Products of int8 over row spans. Compiled once for each instruction set: no include guard.
//
// A task is a block of rows times one panel of 32 outputs. Weights come packed, so a panel is one run of memory: a unit
// of it is 32 outputs times 4 inputs, two registers of AVX-512. The rows are brought once for each block into strips
// of [unit][row]; a strip times a chunk of a panel is a register tile of int32 sums, which are exact. At a chunk's end
// they become floats, times the weights' scales, and are added to the float sums of the chunks before: in one fixed
// order, so an output depends neither on the cut into tasks nor on the number of threads. Several short chunks, up to
// 1024 inputs, are worked off for all strips in turn, so that their weights stay in the first-level cache. Reads each
// weight once per block of rows, 2 n k operations per row; the conversions are 3 of 32 instructions at 128 inputs a
// chunk.

#include "dynabert/simd/vector.h"
#include "dynabert/simd/math.h"
#include "dynabert/simd/tile.h"
#include "dynabert/simd/transpose.h"
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
#include "dynabert/simd/tile_registers.h"
#endif

namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
constexpr int kByteStrip = 14;  // as kStrip, for the same reason
#elif DYNABERT_ISA == DYNABERT_ISA_AVX2
constexpr int kByteStrip = 8;  // 8 sums, a row's bytes and their magnitudes, a register of weights, a product, ones
#else
constexpr int kByteStrip = 4;
#endif

constexpr int64_t kUnitsAtOnce = 256;

// What a tile reads and writes: `units` units of a strip and of a panel, the chunk's offsets and scales of the panel's
// outputs, and rows of kInt8Panel float sums.
struct ByteTile {
  const float* strip;  // the bits of 4 activations each
  const int8_t* panel;
  int64_t units;
  const int32_t* offset;
  const float* scale;
  float* sums;
};

DYNABERT_INLINE Int load_int(const void* p) {
  Int v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
// sum + a . b over 4 unsigned bytes of a and 4 signed ones of b in each lane. As assembler, so that this instruction
// appears nowhere by itself: not every processor with AVX-512 has it, callers ask use_int8_dot().
DYNABERT_INLINE Int dot_bytes(Int sum, Int a, Int b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

// The activations are unsigned for this instruction, 128 too large: the sums start from what that adds, negated.
template <int kRows, bool kAdd>
void dot_tile(const ByteTile& tile, Ahead& next) {
  constexpr int kLane = kLanes<float>;
  Int total[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) total[i][r] = load_int(tile.offset + r * kLane);
  }
  const float* strip = tile.strip;
  const int8_t* panel = tile.panel;
  Ahead ahead = next;
  for (int64_t u = 0; u < tile.units; ++u) {
    ahead.ask();
    const Int first = load_int(panel), second = load_int(panel + sizeof(Int));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Int x = bit_cast<Int>(broadcast(strip[i]));
      total[i][0] = dot_bytes(total[i][0], x, first);
      total[i][1] = dot_bytes(total[i][1], x, second);
    }
    strip += kRows;
    panel += 2 * sizeof(Int);
  }
  next = ahead;
  const Float scale[2] = {load(tile.scale), load(tile.scale + kLane)};
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      float* at = tile.sums + i * kInt8Panel + r * kLane;
      const Float v = __builtin_convertvector(total[i][r], Float);
      store(at, kAdd ? fma(v, scale[r], load(at)) : v * scale[r]);
    }
  }
}
#endif

#if DYNABERT_ISA != DYNABERT_ISA_GENERIC
// Without that instruction: bytes of magnitudes times bytes that took over the sign. Both are at most 127, so a sum of
// two products fits in 16 bits, where it would saturate with unsigned activations.
template <int kRows, bool kAdd>
void pair_tile(const ByteTile& tile) {
  const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(static_cast<char>(kInt8Zero));
  for (int64_t j = 0; j < kInt8Panel; j += 8) {
    __m256i total[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) total[i] = _mm256_setzero_si256();
    const float* strip = tile.strip;
    const int8_t* panel = tile.panel + j * kInt8Unit;
    for (int64_t u = 0; u < tile.units; ++u, strip += kRows, panel += kInt8Panel * kInt8Unit) {
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const __m256i x = _mm256_xor_si256(_mm256_castps_si256(_mm256_broadcast_ss(strip + i)), flip);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
        total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(pairs, ones));
      }
    }
    const __m256 scale = _mm256_loadu_ps(tile.scale + j);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      float* at = tile.sums + i * kInt8Panel + j;
      const __m256 v = _mm256_cvtepi32_ps(total[i]);
      _mm256_storeu_ps(at, kAdd ? _mm256_fmadd_ps(v, scale, _mm256_loadu_ps(at)) : _mm256_mul_ps(v, scale));
    }
  }
}
#else
template <int kRows, bool kAdd>
void pair_tile(const ByteTile& tile) {
  const uint8_t* strip = reinterpret_cast<const uint8_t*>(tile.strip);
  for (int i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kInt8Panel; ++j) {
      int32_t total = 0;
      for (int64_t u = 0; u < tile.units; ++u) {
        const uint8_t* x = strip + (u * kRows + i) * kInt8Unit;
        const int8_t* weights = tile.panel + (u * kInt8Panel + j) * kInt8Unit;
        for (int64_t e = 0; e < kInt8Unit; ++e) total += (x[e] - kInt8Zero) * weights[e];
      }
      float& sum = tile.sums[i * kInt8Panel + j];
      const float v = static_cast<float>(total) * tile.scale[j];
      sum = kAdd ? sum + v : v;
    }
  }
}
#endif

template <int kRows, bool kDot>
DYNABERT_INLINE void byte_tile(const ByteTile& tile, bool add, [[maybe_unused]] Ahead& next) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  if constexpr (kDot) return add ? dot_tile<kRows, true>(tile, next) : dot_tile<kRows, false>(tile, next);
#endif
  return add ? pair_tile<kRows, true>(tile) : pair_tile<kRows, false>(tile);
}

// For a number of rows known at run time, 1 to kByteStrip.
template <bool kDot>
void multiply_bytes(int64_t rows, const ByteTile& tile, bool add, Ahead& next) {
  switch (rows) {
#define DYNABERT_ROWS(n) \
  case n:                \
    return byte_tile<n, kDot>(tile, add, next);
    DYNABERT_ROWS(1)
    DYNABERT_ROWS(2)
    DYNABERT_ROWS(3)
    DYNABERT_ROWS(4)
#if DYNABERT_ISA != DYNABERT_ISA_GENERIC
    DYNABERT_ROWS(5)
    DYNABERT_ROWS(6)
    DYNABERT_ROWS(7)
    DYNABERT_ROWS(8)
#endif
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
    DYNABERT_ROWS(9)
    DYNABERT_ROWS(10)
    DYNABERT_ROWS(11)
    DYNABERT_ROWS(12)
    DYNABERT_ROWS(13)
    DYNABERT_ROWS(14)
#endif
#undef DYNABERT_ROWS
  }
}

template <class T>
constexpr bool kShortByteActivation = false;
template <>
constexpr bool kShortByteActivation<BFloat16> = true;
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
template <>
constexpr bool kShortByteActivation<NativeBFloat16> = true;
#endif

// One register of each row's sums becomes one of c. kPart: its first `here` numbers.
template <class T, bool kPart>
DYNABERT_INLINE void finish_rows(const Int8Gemm& g, int64_t first, int64_t rows, int64_t column, int here,
                                 const float* sums) {
  const T* from = static_cast<const T*>(g.bias) + column;
  const Float bias = kPart ? load_part(from, here) : load(from);
  T* c = static_cast<T*>(g.c) + first * g.c_stride + column;
  for (int64_t i = 0; i < rows; ++i, c += g.c_stride) {
    const Float sum = fma(load(sums + i * kInt8Panel), broadcast(g.a_scale[first + i]), bias);
    const Float v = activate<kShortByteActivation<T>>(sum, g.activation);
    kPart ? store_part(c, v, here) : store(c, v);
  }
}

template <class T>
void finish_strip(const Int8Gemm& g, int64_t first, int64_t rows, int64_t column, int64_t width, const float* sums) {
  constexpr int kLane = kLanes<float>;
  for (int64_t j = 0; j < width; j += kLane) {
    if (width - j < kLane) {
      finish_rows<T, true>(g, first, rows, column + j, static_cast<int>(width - j), sums + j);
    } else {
      finish_rows<T, false>(g, first, rows, column + j, kLane, sums + j);
    }
  }
}

struct ByteStrip {
  int64_t row, rows, n, chunks;
  const float* packed;
};

// The strips of rows first to last - 1, packed into this thread's scratch memory; returns how many.
inline int64_t pack_byte_strips(const Int8Gemm& g, int64_t first, int64_t last, const ByteStrip** strips_out) {
  int64_t count = 0, words = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    if (begin >= end) continue;
    count += (end - begin + kByteStrip - 1) / kByteStrip;
    words += (end - begin) * g.cut.bytes(span.k) / kInt8Unit;
  }
  ByteStrip* strips = scratch_of<ByteStrip>(kScratchC, static_cast<size_t>(count));
  float* packed = scratch_of<float>(kScratchA, static_cast<size_t>(words + kLanes<float>));
  int64_t at = 0;
  for (int64_t s = 0; s < g.num_spans; ++s) {
    const GemmSpan& span = g.spans[s];
    const int64_t begin = span.begin > first ? span.begin : first, end = span.end < last ? span.end : last;
    if (begin >= end) continue;
    const int64_t length = g.cut.bytes(span.k) / kInt8Unit;
    // Strips of nearly equal height, see pack_strips.
    const int64_t pieces = (end - begin + kByteStrip - 1) / kByteStrip;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t row = begin + (end - begin) * piece / pieces;
      const int64_t rows = begin + (end - begin) * (piece + 1) / pieces - row;
      // Four bytes travel as one float: nothing is computed with it.
      const float* source = reinterpret_cast<const float*>(g.a + row * g.a_stride);
      pack_rows<FloatUnits<float>>(packed, rows, source, g.a_stride / kInt8Unit, rows, length);
      strips[at++] = {row, rows, span.n, g.cut.of(span.k), packed};
      packed += rows * length;
    }
  }
  *strips_out = strips;
  return count;
}

template <class T, bool kDot>
void run_byte_panels(const Int8Gemm& g, const ByteStrip* strips, int64_t count, int64_t first_row, int64_t rows,
                     int64_t begin, int64_t end) {
  const int64_t chunk_bytes = g.cut.units * kInt8Panel * kInt8Unit, panel_bytes = g.chunks * chunk_bytes;
  const int64_t together = kUnitsAtOnce > g.cut.units ? kUnitsAtOnce / g.cut.units : 1;
  float* sums = scratch_of<float>(kScratchD, static_cast<size_t>(rows * kInt8Panel));
  int64_t most = 0;
  for (int64_t s = 0; s < count; ++s) most = strips[s].chunks > most ? strips[s].chunks : most;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * kInt8Panel;
    for (int64_t from = 0; from < most; from += together) {
      const int64_t to = from + together;
      const int8_t* next = to < most ? g.b + panel * panel_bytes + to * chunk_bytes : g.b + (panel + 1) * panel_bytes;
      const int64_t left = to < most ? most - to : panel + 1 < end ? most : 0;
      Ahead ahead = Ahead::of(next, 0, left > 0 ? 1 : 0, (left < together ? left : together) * chunk_bytes);
      for (int64_t s = 0; s < count; ++s) {
        const ByteStrip& strip = strips[s];
        if (strip.n <= column || strip.chunks <= from) continue;
        float* here = sums + (strip.row - first_row) * kInt8Panel;
        const int64_t reached = strip.chunks < to ? strip.chunks : to;
        for (int64_t chunk = from; chunk < reached; ++chunk) {
          const ByteTile tile = {strip.packed + chunk * g.cut.units * strip.rows,
                                 g.b + panel * panel_bytes + chunk * chunk_bytes,
                                 g.cut.units,
                                 g.offset + chunk * g.columns + column,
                                 g.scale + chunk * g.columns + column,
                                 here};
          multiply_bytes<kDot>(strip.rows, tile, chunk > 0, ahead);
        }
        if (reached < strip.chunks) continue;
        const int64_t width = strip.n - column < kInt8Panel ? strip.n - column : kInt8Panel;
        finish_strip<T>(g, strip.row, strip.rows, column, width, here);
      }
    }
  }
}

template <class T, bool kDot>
void run_byte_tasks(const Int8Gemm& g, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t block = begin / g.panels, first = g.first_row + block * g.row_block, last = first + g.row_block;
    const int64_t stop = (block + 1) * g.panels < end ? (block + 1) * g.panels : end;
    const ByteStrip* strips = nullptr;
    const int64_t count = pack_byte_strips(g, first, last, &strips);
    if (count > 0) {
      run_byte_panels<T, kDot>(g, strips, count, first, g.row_block, begin - block * g.panels, stop - block * g.panels);
    }
    begin = stop;
  }
}

#if DYNABERT_ISA == DYNABERT_ISA_AVX512
}  // namespace
}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
#include "cpu/int8_gemm_tiles.h"
namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE {
namespace {
#endif

void gemm(const Int8Gemm& g, int64_t begin, int64_t end) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  if (g.tiles) {
    with_tiles([&](auto kind) { run_byte_tiles<typename decltype(kind)::Tiles>(g, begin, end); });
    return;
  }
  if (use_int8_dot()) {
    if (g.dtype == DType::kFloat32) return run_byte_tasks<float, true>(g, begin, end);
    if (use_bfloat16_dot()) return run_byte_tasks<NativeBFloat16, true>(g, begin, end);
    return run_byte_tasks<BFloat16, true>(g, begin, end);
  }
#endif
  if (g.dtype == DType::kFloat32) return run_byte_tasks<float, false>(g, begin, end);
  return run_byte_tasks<BFloat16, false>(g, begin, end);
}

using Bytes = uint8_t __attribute__((vector_size(kVectorBytes / 4)));

DYNABERT_INLINE Bytes to_bytes(UInt numbers) {
#if DYNABERT_ISA == DYNABERT_ISA_AVX512
  return (Bytes)_mm512_cvtepi32_epi8((__m512i)numbers);
#else
  return __builtin_convertvector(numbers, Bytes);
#endif
}

// length numbers, times `inverse`, rounded to the nearest whole one, ties to even.
template <class T>
DYNABERT_INLINE void to_bytes(const T* x, int64_t length, Float inverse, uint8_t* a) {
  constexpr int64_t kStep = kLanes<float>;
  const Float rounder = broadcast(0x1.8p23f);  // see whole_powers
  for (int64_t j = 0; j < length; j += kStep) {
    const bool whole = length - j >= kStep;
    const int64_t here = whole ? kStep : length - j;
    const Float v = whole ? load(x + j) : load_part(x + j, static_cast<int>(here));
    const UInt bits = bit_cast<UInt>(rounded(v * inverse) + rounder) ^ kInt8Zero;
    const Bytes bytes = to_bytes(bits);
    if (whole) {
      __builtin_memcpy(a + j, &bytes, sizeof bytes);
    } else {
      __builtin_memcpy(a + j, &bytes, static_cast<size_t>(here));
    }
  }
}

// Magnitudes are compared as whole numbers, so that a NaN is the largest of all. `Bits`: a register of numbers as they
// lie in memory; `wide`: the larger one of what falls into each lane of 32 bits.
template <class T>
struct Magnitudes {
  using Bits = Int;
  static constexpr int32_t kMask = 0x7fffffff;
  static DYNABERT_INLINE Int wide(Bits most) { return most; }
};
template <>
struct Magnitudes<BFloat16> {
  using Bits = uint16_t __attribute__((vector_size(kVectorBytes)));
  static constexpr uint16_t kMask = 0x7fff;
  static DYNABERT_INLINE Int wide(Bits most) {
    const Int both = bit_cast<Int>(most), first = both << 16, second = both & ~0xffff;
    return first > second ? first : second;
  }
};

// The largest magnitude of k numbers.
template <class T>
DYNABERT_INLINE float largest_magnitude(const T* x, int64_t k) {
  using Bits = typename Magnitudes<T>::Bits;
  constexpr int64_t kStep = static_cast<int64_t>(sizeof(Bits) / sizeof(T));
  Bits most[4] = {};
  int64_t j = 0;
  for (; j + 4 * kStep <= k; j += 4 * kStep) {
    for (int u = 0; u < 4; ++u) {
      Bits bits;
      __builtin_memcpy(&bits, x + j + u * kStep, sizeof bits);
      bits = bits & Magnitudes<T>::kMask;
      most[u] = bits > most[u] ? bits : most[u];
    }
  }
  for (; j < k; j += kStep) {
    Bits bits = {};
    __builtin_memcpy(&bits, x + j, sizeof(T) * static_cast<size_t>(k - j < kStep ? k - j : kStep));
    bits = bits & Magnitudes<T>::kMask;
    most[0] = bits > most[0] ? bits : most[0];
  }
  for (int u = 1; u < 4; ++u) most[0] = most[u] > most[0] ? most[u] : most[0];
  const int32_t found = largest(Magnitudes<T>::wide(most[0]));
  float number;
  __builtin_memcpy(&number, &found, sizeof number);
  return number;
}

template <class T>
void quantise_rows(const Int8Rows& rows, int64_t begin, int64_t end) {
  const int64_t k = rows.k, inputs = rows.cut.inputs, bytes = rows.cut.units * kInt8Unit;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(rows.x) + row * rows.x_stride;
    uint8_t* a = rows.a + row * rows.a_stride;
    const float most = largest_magnitude(x, k);
    rows.scale[row] = most / 127.0f;
    const Float inverse = broadcast(most > 0.0f ? 127.0f / most : 0.0f);
    if (inputs == bytes) {
      to_bytes(x, k, inverse, a);
      const int64_t stored = rows.cut.bytes(k);
      for (int64_t j = k; j < stored; ++j) a[j] = kInt8Zero;
      continue;
    }
    for (int64_t done = 0; done < k; done += inputs, a += bytes) {
      const int64_t here = k - done < inputs ? k - done : inputs;
      to_bytes(x + done, here, inverse, a);
      for (int64_t j = here; j < bytes; ++j) a[j] = kInt8Zero;
    }
  }
}

void rows(const Int8Rows& r, int64_t begin, int64_t end) {
  if (r.dtype == DType::kFloat32) return quantise_rows<float>(r, begin, end);
  return quantise_rows<BFloat16>(r, begin, end);
}

}  // namespace

constexpr Int8Kernels kInt8 = {gemm, rows};

}  // namespace dynabert::cpu::DYNABERT_ISA_NAMESPACE
