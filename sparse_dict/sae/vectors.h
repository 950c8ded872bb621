/* Rows of D floats, and pairs of values in bfloat16. */
#ifndef VECTORS_H
#define VECTORS_H
#include "../machine/vectors.h"

#define SUMS (32 / LANES) /* of a dot product: two by 16, so that all processors add alike */
#define VECS (D / LANES) /* of a row of D floats */

static inline float sum_lanes(vec a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)a);
#else
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) a[i] += a[i + half];
  return a[0];
#endif
}

static inline float dot(const float *a, const float *b) {
  const vec *u = (const vec *)a, *v = (const vec *)b;
  vec sum[SUMS] = {{0}};
  int j = 0;
  for (; j + SUMS <= VECS; j += SUMS)
    for (int i = 0; i < SUMS; i++) sum[i] += u[j + i] * v[j + i];
  for (int i = 0; j < VECS; j++, i++) sum[i] += u[j] * v[j];
  for (int half = SUMS / 2; half; half /= 2)
    for (int i = 0; i < half; i++) sum[i] += sum[i + half];
  return sum_lanes(sum[0]);
}

static inline void add_row(float *to, float factor, const float *row) {
  for (int j = 0; j < VECS; j++) ((vec *)to)[j] += factor * ((const vec *)row)[j];
}

/* Ask for `count` rows of D values that will be needed soon. */
static inline void prefetch(const float *rows, int count) {
  for (int i = 0; i < count * D; i += LANES) __builtin_prefetch(rows + i);
}

static inline vec square_roots(vec a) {
#if defined(__AVX512F__)
  return (vec)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX__)
  return (vec)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < LANES; i++) a[i] = sqrtf(a[i]);
  return a;
#endif
}

/* Two rows of floats rounded to bfloat16, nearest and ties to even: `low` into the lower halves
   of the lanes, `high` into the upper ones. */
static inline ivec bf16_pairs(vec low, vec high) {
  const ivec l = (ivec)low, h = (ivec)high;
  const ivec up_l = l + 0x7fff + (l >> 16 & 1), up_h = h + 0x7fff + (h >> 16 & 1);
  return (up_l >> 16 & 0xffff) | (up_h & (int32_t)0xffff0000);
}

/* sum + the products of the pairs in each lane. */
static inline vec add_bf16_products(vec sum, ivec a, ivec b) {
#if defined(__AVX512BF16__)
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  const ivec upper = (ivec){0} + (int32_t)0xffff0000;
  return sum + (vec)(a << 16) * (vec)(b << 16) + (vec)(a & upper) * (vec)(b & upper);
#endif
}

#endif
