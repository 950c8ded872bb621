/* Vectors by GCC's and Clang's extensions, so that one source does for x86 and ARM. They are as wide
   as the processor's registers: of wider ones GCC makes code that is twenty times slower.
   Do not compile with -fassociative-math: `exp2_of` rounds by adding a large number. */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define SPAN (16 / LANES) /* vectors in 16 numbers, by which sums are made on every processor */
#define LOG2E 1.44269504f
#define LN2 0.69314718f
/* A softmax is taken relative to a logit of its own row, so that its sum is at least one; where
   the sum exceeds this it is taken again relative to the largest. */
#define OVERFLOW 0x1p72f

/* What `load` and `store` reach may be of any type, and lie at any float. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec load(const void *at) { return *(const vec *)at; }

static inline void store(void *at, vec value) { *(vec *)at = value; }

static inline vec choose(ivec condition, vec yes, vec no) {
  return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

static inline vec all(float value) { return (vec){0} + value; }

/* 2^x, relative error 2e-7. Below 2^-126 it is that or less, above OVERFLOW that or more;
   not-a-number stays. */
static inline vec exp2_of(vec x) {
#if defined(__AVX512F__)
  const vec z = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  const vec least = all(-126.0f), most = all(73.0f);
  const vec shift = all(12582912.0f + 127.0f); /* 1.5 * 2^23: what is added is rounded */
  x = choose(x < least, least, x);
  x = choose(x > most, most, x);
  const vec sum = x + shift, z = sum - shift;
#endif
  const vec f = x - z; /* in [-.5, .5] */
  vec p = f * 1.33336498402e-3f + 9.61793571e-3f;
  p = p * f + 5.55036030e-2f;
  p = p * f + 2.40226462e-1f;
  p = p * f + 6.93147182e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)z);
#else
  return p * (vec)((ivec)sum << 23);
#endif
}
