/* Which features are active on a panel of rows, with which codes, and what they reconstruct.

   The encoder's products of a few features with 64 rows are made in registers, compared with what
   makes a feature active, and forgotten: only TopK and BatchTopK, which must see a row's products
   of all features before they choose, have them written to memory. */
#ifndef ENCODE_H
#define ENCODE_H
#include <stdlib.h>

#include "dictionary.h"
#include "vectors.h"

#define PANEL 64 /* rows; a bit of a uint64_t each */
#define PANEL_VECS (PANEL / LANES)

/* Features whose products are made at once and vectors of rows: as many sums as there are
   registers, less those for the factors. */
#if defined(__AVX512F__)
#define AT_ONCE 8
#else
#define AT_ONCE 4
#endif
#define ROW_VECS 2

/* Up to 64 rows, as they come and with dimensions as rows. */
struct panel {
  const float *X, *Y; /* (rows, D) what is read and what is reconstructed */
  const float *X_t;   /* (D, PANEL), zeros behind the last row */
  const int32_t *low; /* (D / 2, PANEL) pairs of dimensions in bfloat16, if it is needed */
  int64_t rows;
};

/* The active entries of a dictionary on a panel, feature by feature. */
struct entries {
  uint64_t *rows; /* (size,) bit r: row r has an entry */
  int32_t *start; /* (size,) where the feature's codes begin */
  float *codes;   /* (size * PANEL + LANES,) */
};

static inline uint64_t valid_rows(int64_t rows) {
  return rows == PANEL ? ~(uint64_t)0 : ((uint64_t)1 << rows) - 1;
}

static void transpose(const float *X, int64_t rows, float *X_t) {
  for (int first = 0; first < D; first += 16) /* a cache line of each row at a time */
    for (int64_t r = 0; r < PANEL; r++)
      for (int j = first; j < first + 16; j++) X_t[j * PANEL + r] = r < rows ? X[r * D + j] : 0.0f;
}

static void round_panel(const float *X_t, int32_t *low) {
  const vec *x = (const vec *)X_t;
  ivec *to = (ivec *)low;
  for (int pair = 0; pair < D / 2; pair++)
    for (int u = 0; u < PANEL_VECS; u++)
      to[pair * PANEL_VECS + u] =
          bf16_pairs(x[2 * pair * PANEL_VECS + u], x[(2 * pair + 1) * PANEL_VECS + u]);
}

/* z (count, PANEL) = b + W X^T: of float32, or with `low` of pairs of dimensions in bfloat16, which
   are summed in float32. With a constant `count`, the sums stay in registers. */
INLINED void multiply(const void *W, const float *b, const void *X_t, int low, int count,
                      float *z) {
  const int units = low ? D / 2 : D;
  for (int at = 0; at < PANEL_VECS; at += ROW_VECS) {
    vec sum[AT_ONCE][ROW_VECS];
    EACH(f, count) EACH(u, ROW_VECS) sum[f][u] = all(b[f]);
    for (int j = 0; j < units; j++) {
      const vec *x = (const vec *)X_t + j * PANEL_VECS + at;
      EACH(f, count) EACH(u, ROW_VECS)
        if (low) sum[f][u] = add_bf16_products(
              sum[f][u], (ivec){0} + ((const int32_t *)W)[f * units + j], (ivec)x[u]);
        else sum[f][u] += ((const float *)W)[f * units + j] * x[u];
    }
    EACH(f, count) EACH(u, ROW_VECS) ((vec *)(z + f * PANEL))[at + u] = sum[f][u];
  }
}

/* Rows of W (count, D) in bfloat16, pairs of dimensions together. */
static inline void round_rows(const float *W, int count, int32_t *low) {
  for (int i = 0; i < count * D; i += LANES) {
#if defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(W + i));
    memcpy(low + i / 2, &rounded, sizeof rounded);
#else
    vec even, odd;
    for (int j = 0; j < LANES; j++) {
      even[j] = j < LANES / 2 ? W[i + 2 * j] : 0;
      odd[j] = j < LANES / 2 ? W[i + 2 * j + 1] : 0;
    }
    const ivec pairs = bf16_pairs(even, odd);
    memcpy(low + i / 2, &pairs, sizeof pairs / 2);
#endif
  }
}

/* z (count, PANEL) for features `first` to first + count, count <= AT_ONCE. */
static void products(const struct dictionary *d, int64_t first, int count, const struct panel *p,
                     float *z) {
  const float *W = d->W_enc + first * D, *b = d->b + first;
  /* Past the last feature it does no harm; wider rows would push out what is being read. */
  if (D <= 512) prefetch(W + count * D, AT_ONCE);
  if (d->bf16) {
    int32_t low[AT_ONCE * D / 2];
    round_rows(W, count, low);
    if (count == AT_ONCE) multiply(low, b, p->low, 1, AT_ONCE, z);
    else
      for (int f = 0; f < count; f++)
        multiply(low + f * (D / 2), b + f, p->low, 1, 1, z + f * PANEL);
  } else if (count == AT_ONCE) {
    multiply(W, b, p->X_t, 0, AT_ONCE, z);
  } else {
    for (int f = 0; f < count; f++) multiply(W + f * D, b + f, p->X_t, 0, 1, z + f * PANEL);
  }
}

/* A bit for each lane in which a > b, or if `equal` is set a >= b. */
INLINED uint64_t lanes_above(vec a, vec b, int equal) {
#if defined(__AVX512F__)
  return equal ? _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ)
               : _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX__)
  return (uint64_t)_mm256_movemask_ps((__m256)(equal ? a >= b : a > b));
#else
  uint64_t mask = 0;
  for (int i = 0; i < LANES; i++) mask |= (uint64_t)(equal ? a[i] >= b[i] : a[i] > b[i]) << i;
  return mask;
#endif
}

/* The rows r whose z[r] exceeds, or if `equal` is set reaches, its floor: floors[r], or where it is
   not of `each`, one for all. */
INLINED uint64_t above(const float *z, const float *floors, int each, int equal) {
  uint64_t mask = 0;
  for (int u = 0; u < PANEL_VECS; u++) {
    const vec floor = each ? ((const vec *)floors)[u] : all(*floors);
    mask |= lanes_above(((const vec *)z)[u], floor, equal) << u * LANES;
  }
  return mask;
}

/* The chosen of 64 values one after the other; `to` has room for LANES more. */
static inline int compress(const float *z, uint64_t chosen, float *to) {
  int count = 0;
#if defined(__AVX512F__)
  for (int u = 0; u < PANEL_VECS; u++) {
    const __mmask16 part = (__mmask16)(chosen >> u * LANES);
    _mm512_storeu_ps(to + count, _mm512_maskz_compress_ps(part, _mm512_loadu_ps(z + u * LANES)));
    count += __builtin_popcount(part);
  }
#else
  for (; chosen; chosen &= chosen - 1) to[count++] = z[__builtin_ctzll(chosen)];
#endif
  return count;
}

/* List one feature's entries, those `on` of the codes z, at `end` of the list; returns its new end.
   Codes whose products were rounded are made again in float32, and must still exceed `least`. */
static inline int32_t list(const struct dictionary *d, int64_t k, const struct panel *p,
                           const float *z, uint64_t on, float least, int32_t end,
                           struct entries *to) {
  to->start[k] = end;
  to->rows[k] = on;
  if (!d->bf16) return end + compress(z, on, to->codes + end);
  for (uint64_t left = on; left; left &= left - 1) {
    const int r = __builtin_ctzll(left);
    const float exact = dot(d->W_enc + k * D, p->X + r * D) + d->b[k];
    to->codes[end] = exact;
    if (exact > least) end++;
    else to->rows[k] &= ~((uint64_t)1 << r);
  }
  return end;
}

/* The entries of ReLU, and of JumpReLU with `thresholds` (size,): also those up to `band` below
   their threshold, which are not active but move it. */
static void find_active(const struct dictionary *d, const float *thresholds, const struct panel *p,
                        struct entries *to) {
  float z[AT_ONCE * PANEL] __attribute__((aligned(64)));
  const uint64_t valid = valid_rows(p->rows);
  int32_t end = 0;
  for (int64_t first = 0; first < d->size; first += AT_ONCE) {
    const int count = d->size - first < AT_ONCE ? (int)(d->size - first) : AT_ONCE;
    products(d, first, count, p, z);
    for (int f = 0; f < count; f++) {
      const float least = thresholds ? thresholds[first + f] - d->band : 0.0f;
      const uint64_t on = above(z + f * PANEL, &least, 0, 0) & valid;
      end = list(d, first + f, p, z + f * PANEL, on, least, end, to);
    }
  }
}

static void sift_down(float *heap, int64_t k) {
  for (int64_t i = 0;;) {
    int64_t least = i, left = 2 * i + 1;
    if (left < k && heap[left] < heap[least]) least = left;
    if (left + 1 < k && heap[left + 1] < heap[least]) least = left + 1;
    if (least == i) return;
    const float swap = heap[i];
    heap[i] = heap[least];
    heap[least] = swap;
    i = least;
  }
}

#define TINY 1e-30f /* the least code that is chosen: positive */

/* The k-th largest of the positive z[:, r] of each row into floors (PANEL,); TINY where fewer than
   k are. `heaps` needs PANEL * k values. */
static void row_floors(const float *z, int64_t size, int64_t rows, int64_t k, float *heaps,
                       float *floors) {
  for (int64_t i = 0; i < PANEL * k; i++) heaps[i] = TINY;
  for (int r = 0; r < PANEL; r++) floors[r] = TINY;
  for (int64_t f = 0; f < size; f++, z += PANEL)
    for (uint64_t on = above(z, floors, 1, 0) & valid_rows(rows); on; on &= on - 1) {
      const int r = __builtin_ctzll(on);
      float *heap = heaps + r * k;
      heap[0] = z[r];
      sift_down(heap, k);
      floors[r] = heap[0];
    }
}

/* The `keep`-th largest of count values that are positive, or 0 if there are fewer. `values` are
   lost. Positive floats are in the order of their bits, which are found from the highest down. */
static float largest(float *values, int64_t count, int64_t keep) {
  if (keep > count) return 0.0f;
  uint32_t found = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t bins[256] = {0}, kept = 0;
    uint32_t bits;
    for (int64_t i = 0; i < count; i++) {
      memcpy(&bits, values + i, sizeof bits);
      bins[bits >> shift & 255]++;
    }
    uint32_t bin = 255;
    while (bins[bin] < keep) keep -= bins[bin--];
    found |= bin << shift;
    for (int64_t i = 0; i < count; i++) {
      memcpy(&bits, values + i, sizeof bits);
      values[kept] = values[i];
      kept += (bits >> shift & 255) == bin;
    }
    count = kept;
  }
  float value;
  memcpy(&value, &found, sizeof value);
  return value;
}

/* BatchTopK's smallest code: of z (count, size, PANEL) the k * rows largest are kept. */
static float batch_floor(const float *z, const struct dictionary *d, const struct panel *p,
                         int64_t count, float *positive) {
  const float zero = 0.0f;
  int64_t found = 0, rows = 0;
  for (int64_t i = 0; i < count; i++) {
    rows += p[i].rows;
    for (int64_t f = 0; f < d->size; f++, z += PANEL)
      found += compress(z, above(z, &zero, 0, 0) & valid_rows(p[i].rows), positive + found);
  }
  const int64_t keep = d->k * rows < d->size * rows ? d->k * rows : d->size * rows;
  return largest(positive, found, keep);
}

/* The entries of TopK on a panel, and of BatchTopK on the panels that it chooses over: of each row
   what is at least its floor. Returns BatchTopK's floor.

   z        (count, size, PANEL), overwritten
   scratch  count * PANEL * size + LANES values, of which TopK needs PANEL * k */
static float choose(const struct dictionary *d, const struct panel *p, int64_t count, float *z,
                    float *scratch, struct entries *to) {
  float floors[PANEL], smallest = 0.0f;
  for (int64_t i = 0; i < count; i++)
    for (int64_t first = 0; first < d->size; first += AT_ONCE) {
      const int features = d->size - first < AT_ONCE ? (int)(d->size - first) : AT_ONCE;
      products(d, first, features, p + i, z + (i * d->size + first) * PANEL);
    }
  if (d->together) {
    smallest = batch_floor(z, d, p, count, scratch);
    for (int r = 0; r < PANEL; r++) floors[r] = smallest > TINY ? smallest : TINY;
  }
  for (int64_t i = 0; i < count; i++) {
    const float *own = z + i * d->size * PANEL;
    if (!d->together) row_floors(own, d->size, p[i].rows, d->k, scratch, floors);
    int32_t end = 0;
    for (int64_t k = 0; k < d->size; k++) {
      const uint64_t on = above(own + k * PANEL, floors, 1, 1) & valid_rows(p[i].rows);
      end = list(d, k, p + i, own + k * PANEL, on, 0.0f, end, to + i);
    }
  }
  return smallest;
}

/* What is summed over a panel, and the floor of the panels that BatchTopK chose over. */
struct panel_sums {
  double squared_error, codes;
  int64_t active;
  float floor;
  float residual[D] __attribute__((aligned(64))); /* with b_dec */
};

/* The residual R (rows, D): reconstruction less what is reconstructed. */
static void reconstruct(const struct dictionary *d, const float *thresholds, const struct panel *p,
                        const struct entries *found, float *R, struct panel_sums *sums) {
  int64_t active = 0;
  sums->codes = sums->squared_error = 0;
  for (int64_t i = 0; i < p->rows * D; i++) R[i] = -p->Y[i];
  for (int64_t r = 0; d->b_dec && r < p->rows; r++)
    for (int j = 0; j < D; j++) R[r * D + j] += d->b_dec[j];
  for (int64_t k = 0; k < d->size; k++) {
    if (!found->rows[k]) continue;
    const float threshold = thresholds ? thresholds[k] : 0.0f;
    const float *codes = found->codes + found->start[k];
    vec w[VECS];
    memcpy(w, d->W_dec + k * D, sizeof w);
    float total = 0;
    for (uint64_t left = found->rows[k]; left; left &= left - 1) {
      const float code = *codes++;
      if (code <= threshold) continue;
      vec *r = (vec *)(R + __builtin_ctzll(left) * D);
      for (int j = 0; j < VECS; j++) r[j] += code * w[j];
      total += code;
      active++;
    }
    sums->codes += total;
  }
  sums->active = active;
  for (int64_t r = 0; r < p->rows; r++) sums->squared_error += dot(R + r * D, R + r * D);
  if (!d->b_dec) return;
  memset(sums->residual, 0, sizeof sums->residual);
  for (int64_t r = 0; r < p->rows; r++)
    for (int j = 0; j < VECS; j++) ((vec *)sums->residual)[j] += ((const vec *)(R + r * D))[j];
}

#endif
