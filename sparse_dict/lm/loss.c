/* Cross-entropy of a linear layer's outputs, with gradients, for a narrow layer and many classes.

   The logits of a few rows and 64 classes are made, exponentiated, summed and multiplied on while
   they lie in registers and the first-level cache. Exponentials are kept, in the products' type,
   for a chunk of CHUNK rows only, because the gradient of the weight needs the rows' sums first.

   Compiled per width: -DD=<columns>, and with -DBF16=1 for products of bfloat16 pairs accumulated
   in float32 (AVX512-BF16). Operands are arrays of 32-bit units: one float32, or two bfloat16
   that are neighbours along the summed dimension; so both kinds share all loops.

   On exponentials and flags see simd.h. */
#include "simd.h"

#if BF16
#define U 2 /* summands in one unit */
#else
#define U 1
#endif

#define TILE 64 /* classes worked on at a time */
#define CHUNK 64 /* rows between two updates of the weight's gradient */
#define P ((D + 15) / 16 * 16) /* padded width */
#define UNITS (P / U)
#if LANES == 16 /* vectors of a tile, and of a row, that are summed at a time: as registers allow */
#define BLOCK 4
#define WIDE (P / LANES % 2 ? 1 : 2)
#else
#define BLOCK 2
#define WIDE 1
#endif

/* sum + b * a, in BF16 sum + b_even * a_even + b_odd * a_odd; `a` is one unit for all lanes */
static inline vec multiply_add(vec sum, vec b, uint32_t a) {
#if BF16
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a));
#else
  float value;
  memcpy(&value, &a, sizeof value);
  return sum + b * value;
#endif
}

/* float32 nearest in the products' type (ties to even), as bits in the upper half for BF16 */
static inline uint32_t rounded(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
#if BF16
  if (value != value) return 0x7fc00000u;
  bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
#endif
  return bits;
}

static inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* One unit of one or two summands; `second` is not looked at in float32. */
static inline uint32_t unit(float first, float second) {
#if BF16
  return rounded(first) >> 16 | rounded(second);
#else
  (void)second;
  return rounded(first);
#endif
}

/* Lay out classes [first, last) tiles of W (V, D) for the products: zeros beyond V and D.
   by_class  (tiles, UNITS, TILE) units along the columns: for the logits
   by_column (tiles, TILE / U, P) units along the classes: for the rows' gradient */
void pack(const float *W, int64_t V, int64_t first, int64_t last, uint32_t *by_class,
          uint32_t *by_column) {
  float row[TILE][P + U];
  memset(row, 0, sizeof row);
  for (int64_t t = first; t < last; t++) {
    for (int v = 0; v < TILE; v++)
      if (t * TILE + v < V)
        memcpy(row[v], W + (t * TILE + v) * D, D * sizeof(float));
      else
        memset(row[v], 0, sizeof row[v]);
    uint32_t *out = by_class + t * UNITS * TILE;
    for (int k = 0; k < UNITS; k++)
      for (int v = 0; v < TILE; v++) out[k * TILE + v] = unit(row[v][U * k], row[v][U * k + U - 1]);
    out = by_column + t * (TILE / U) * P;
    for (int u = 0; u < TILE / U; u++)
      for (int d = 0; d < P; d++) out[u * P + d] = unit(row[U * u][d], row[U * u + U - 1][d]);
  }
}

/* Logits less `reference` of 4 rows and one tile. */
INLINED void logits(const uint32_t *h, const float *reference, const uint32_t *by_class,
                    vec out[4][BLOCK]) {
  vec sum[4][BLOCK]; /* stays in registers */
  EACH(i, 4) EACH(j, BLOCK) sum[i][j] = all(-reference[i]);
  for (int k = 0; k < UNITS; k++) {
    vec w[BLOCK];
    EACH(j, BLOCK) w[j] = load(by_class + k * TILE + j * LANES);
    EACH(i, 4) EACH(j, BLOCK) sum[i][j] = multiply_add(sum[i][j], w[j], h[i * UNITS + k]);
  }
  EACH(i, 4) EACH(j, BLOCK) out[i][j] = sum[i][j];
}

/* Lanes of vector j of a tile that are classes at all, all ones or zero. */
static inline ivec present(int64_t classes, int j) {
  return lanes() < (ivec){0} + (int32_t)(classes - j * LANES);
}

/* Exponentials of a tile: to `sums` (CHUNK, SPAN), row-major in units along the classes to
   `by_row` (CHUNK, TILE / U), and in units along the rows to `kept` (CHUNK / U, TILE). In float32
   the last two are the same. */
INLINED void exponentials(const uint32_t *h, const float *reference, const uint32_t *by_class,
                          int64_t rows, int64_t classes, int whole, vec *sums, uint32_t *by_row,
                          uint32_t *kept) {
  for (int r = 0; r < rows; r += 4) for (int at = 0; at < TILE; at += BLOCK * LANES) {
    vec e[4][BLOCK];
    logits(h + r * UNITS, reference + r, by_class + at, e);
    EACH(j, BLOCK) {
      EACH(i, 4) {
        e[i][j] = exp2_of(e[i][j]);
        if (!whole) e[i][j] = (vec)((ivec)e[i][j] & present(classes - at, j));
        sums[(r + i) * SPAN + (at / LANES + j) % SPAN] += e[i][j];
      }
#if BF16
      const __m512i mix = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
#pragma GCC unroll 2
      for (int i = 0; i < 4; i += 2) {
        const __m512i two =
            (__m512i)_mm512_cvtne2ps_pbh((__m512)e[i + 1][j], (__m512)e[i][j]);
        uint32_t *row = by_row + (r + i) * (TILE / 2) + j * (LANES / 2);
        _mm256_storeu_si256((__m256i *)row, _mm512_castsi512_si256(two));
        _mm256_storeu_si256((__m256i *)(row + TILE / 2), _mm512_extracti64x4_epi64(two, 1));
        _mm512_storeu_si512(kept + (r + i) / 2 * TILE + j * LANES,
                            _mm512_permutexvar_epi16(mix, two));
      }
#else
      EACH(i, 4) store(kept + (r + i) * TILE + at + j * LANES, e[i][j]);
#endif
    }
  }
}

/* out (rows, P) += a (rows, K units, at a[row * row_step + k * unit_step]) b (K units, P) */
INLINED void add_product(const uint32_t *a, int64_t row_step, int64_t unit_step, const uint32_t *b,
                         int64_t rows, int64_t K, float *out) {
  for (int64_t r = 0; r < rows; r += 8)
    for (int d = 0; d < P; d += WIDE * LANES) {
      vec sum[8][WIDE];
      EACH(i, 8) EACH(j, WIDE) sum[i][j] = load(out + (r + i) * P + d + j * LANES);
      for (int64_t k = 0; k < K; k++) {
        vec w[WIDE];
        EACH(j, WIDE) w[j] = load(b + k * P + d + j * LANES);
        EACH(i, 8) EACH(j, WIDE)
            sum[i][j] = multiply_add(sum[i][j], w[j], a[(r + i) * row_step + k * unit_step]);
      }
      EACH(i, 8) EACH(j, WIDE)
          store(out + (r + i) * P + d + j * LANES, sum[i][j]);
    }
}

static float sum_lanes(const vec a[SPAN]) {
  float sum = 0;
  for (int i = 0; i < 16; i++) sum += a[i / LANES][i % LANES];
  return sum;
}

/* Losses in nats of rows [first, last) of H (n, D) and, where they are wanted, gradients of their
   mean over n rows.

   by_class, by_column  from `pack`
   losses (n,)
   dH     (n, D) or NULL: set
   dW     (tiles * TILE, P) or NULL: added to
   kept   room for (tiles, CHUNK / U, TILE) units; not looked at without dW */
void cross_entropy(const float *H, const int64_t *targets, const float *W,
                   const uint32_t *by_class, const uint32_t *by_column, int64_t V, int64_t n,
                   int64_t first, int64_t last, float *losses, float *dH, float *dW,
                   uint32_t *kept) {
  const int64_t tiles = (V + TILE - 1) / TILE, tile_units = CHUNK / U * TILE;
  const float share = 1.0f / (float)n;
  for (int64_t start = first; start < last; start += CHUNK) {
    const int64_t there = last - start < CHUNK ? last - start : CHUNK;
    const int64_t rows = (there + 7) / 8 * 8;
    uint32_t h[CHUNK * UNITS], scaled[CHUNK / U * P], by_row[CHUNK * (TILE / U)];
    uint32_t scratch[CHUNK / U * TILE];
    float reference[CHUNK] = {0}, of_target[CHUNK] = {0}, total[CHUNK], d_hidden[CHUNK * P];
    vec sums[CHUNK * SPAN];
    memset(h, 0, sizeof h);
    for (int64_t r = 0; r < there; r++) {
      const float *x = H + (start + r) * D, *w = W + targets[start + r] * D;
      for (int k = 0; U * k < D; k++)
        h[r * UNITS + k] = unit(x[U * k] * LOG2E, U * k + 1 < D ? x[U * k + 1] * LOG2E : 0.0f);
      float sum = 0;
      for (int d = 0; d < D; d++) sum += as_float(rounded(x[d] * LOG2E)) * as_float(rounded(w[d]));
      of_target[r] = reference[r] = sum;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
      memset(sums, 0, sizeof sums);
      memset(d_hidden, 0, sizeof d_hidden);
      for (int64_t t = 0; t < tiles; t++) {
        const uint32_t *w = by_class + t * UNITS * TILE;
        uint32_t *e = dW ? kept + t * tile_units : scratch;
        if ((t + 1) * TILE <= V)
          exponentials(h, reference, w, rows, TILE, 1, sums, by_row, e);
        else
          exponentials(h, reference, w, rows, V - t * TILE, 0, sums, by_row, e);
        if (dH)
          add_product(BF16 ? by_row : e, TILE / U, 1, by_column + t * (TILE / U) * P, rows,
                      TILE / U, d_hidden);
      }
      int again = 0;
      for (int64_t r = 0; r < there; r++) {
        total[r] = sum_lanes(sums + r * SPAN);
        again |= !(total[r] < OVERFLOW);
      }
      if (!again || attempt) break;
      for (int64_t r = 0; r < rows; r += 4) { /* the largest logits */
        vec top[4] = {{0}}, out[4][BLOCK];
        const float zero[4] = {0};
        for (int i = 0; i < 4; i++) top[i] -= INFINITY;
        for (int64_t t = 0; t < tiles; t++) for (int at = 0; at < TILE; at += BLOCK * LANES) {
          logits(h + r * UNITS, zero, by_class + t * UNITS * TILE + at, out);
          for (int j = 0; j < BLOCK; j++) {
            const ivec real = present(V - t * TILE - at, j);
            for (int i = 0; i < 4; i++) top[i] = choose((out[i][j] > top[i]) & real, out[i][j], top[i]);
          }
        }
        for (int i = 0; i < 4; i++) {
          reference[r + i] = top[i][0];
          for (int l = 1; l < LANES; l++)
            if (top[i][l] > reference[r + i]) reference[r + i] = top[i][l];
        }
      }
    }
    for (int64_t r = 0; r < there; r++)
      losses[start + r] = logf(total[r]) + (reference[r] - of_target[r]) * LN2;
    /* d loss / d logits = e / total - onehot(target): the division goes to the narrow factor of
       each product, the one-hot is the lookup of a row. */
    if (dH)
      for (int64_t r = 0; r < there; r++) {
        const float *w = W + targets[start + r] * D, scale = share / total[r];
        for (int d = 0; d < D; d++)
          dH[(start + r) * D + d] = d_hidden[r * P + d] * scale - w[d] * share;
      }
    if (dW) {
      float x[CHUNK][P];
      memset(x, 0, sizeof x);
      for (int64_t r = 0; r < there; r++) {
        float *g = dW + targets[start + r] * P, scale = share / total[r];
        for (int d = 0; d < D; d++) {
          const float value = H[(start + r) * D + d];
          x[r][d] = value * scale;
          g[d] -= value * share;
        }
      }
      for (int u = 0; u < CHUNK / U; u++)
        for (int d = 0; d < P; d++) scaled[u * P + d] = unit(x[U * u][d], x[U * u + U - 1][d]);
      for (int64_t t = 0; t < tiles; t++)
        add_product(kept + t * tile_units, 1, TILE, scaled, TILE, rows / U, dW + t * TILE * P);
    }
  }
}

/* out[first:last] of (V, D) = sum of the `parts` arrays (tiles * TILE, P) in dW */
void add_parts(const float *dW, int64_t parts, int64_t V, int64_t first, int64_t last, float *out) {
  const int64_t size = (V + TILE - 1) / TILE * TILE * P;
  for (int64_t v = first; v < last; v++)
    for (int d = 0; d < D; d++) {
      float sum = 0;
      for (int64_t p = 0; p < parts; p++) sum += dW[p * size + v * P + d];
      out[v * D + d] = sum;
    }
}
