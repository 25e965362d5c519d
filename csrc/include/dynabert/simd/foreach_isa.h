// Compiles the header named by DYNABERT_KERNELS once for each instruction set of this architecture.
//
// The including file has to include every standard header the kernels use before this one: an inline function of the
// standard library that is first seen under `#pragma GCC target` would be compiled with those instructions, and the
// linker may keep that copy for code that runs on processors without them. For the same reason kernels are in unnamed
// namespaces and use no templates of the standard library. `tests/test_build.py` looks for such copies in the library.
//
// No include guard: one file may compile several headers.

#ifndef DYNABERT_KERNELS
#error "define DYNABERT_KERNELS as the header to compile"
#endif

#define DYNABERT_ISA_GENERIC 0
#define DYNABERT_ISA_AVX2 1
#define DYNABERT_ISA_AVX512 2

#define DYNABERT_ISA DYNABERT_ISA_GENERIC
#define DYNABERT_ISA_NAMESPACE generic
#include DYNABERT_KERNELS
#undef DYNABERT_ISA
#undef DYNABERT_ISA_NAMESPACE

#if defined(__x86_64__)
#define DYNABERT_ISA DYNABERT_ISA_AVX2
#define DYNABERT_ISA_NAMESPACE avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
#include DYNABERT_KERNELS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef DYNABERT_ISA
#undef DYNABERT_ISA_NAMESPACE

#define DYNABERT_ISA DYNABERT_ISA_AVX512
#define DYNABERT_ISA_NAMESPACE avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512vl,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC push_options
// 512-bit registers also where the compiler's default tuning would prefer 256.
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
#include DYNABERT_KERNELS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef DYNABERT_ISA
#undef DYNABERT_ISA_NAMESPACE
#endif

#undef DYNABERT_KERNELS
#undef DYNABERT_ISA_GENERIC
#undef DYNABERT_ISA_AVX2
#undef DYNABERT_ISA_AVX512
