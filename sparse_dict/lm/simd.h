/* Exponentials of vectors. Do not compile with -fassociative-math: `exp2_of` rounds by adding a
   large number. */
#include "../machine/vectors.h"

#define SPAN (16 / LANES) /* vectors in 16 numbers, by which sums are made on every processor */
#define LOG2E 1.44269504f
#define LN2 0.69314718f
/* A softmax is taken relative to a logit of its own row, so that its sum is at least one; where
   the sum exceeds this it is taken again relative to the largest. */
#define OVERFLOW 0x1p72f

static inline vec load(const void *at) { return *(const vec *)at; }

static inline void store(void *at, vec value) { *(vec *)at = value; }

static inline vec choose(ivec condition, vec yes, vec no) {
  return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

static inline ivec lanes(void) {
  ivec lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  return lane;
}

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
