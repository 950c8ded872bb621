/* Vectors of floats in GCC's and Clang's own notation, which x86 and ARM both compile. They are as
   wide as the processor's registers: of wider ones GCC makes code that is twenty times slower. */
#ifndef MACHINE_VECTORS_H
#define MACHINE_VECTORS_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

/* They lie at any float, and what they reach may be of any type. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* A loop of at most 16 turns, laid out one after the other: what it sums stays in registers. */
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

/* For functions that are to be compiled anew for constant arguments. */
#define INLINED static inline __attribute__((always_inline))

static inline vec all(float value) { return (vec){0} + value; }

#endif
