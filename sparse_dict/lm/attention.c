/* Causal self-attention of narrow heads, with gradients. Compiled per head width: -DD=<columns>.

   BLAS is slow at a width of 8: here 16 queries (or keys) lie side by side in a vector, one vector
   per column, and the other side is read number by number; no score is stored.

   qkv, dqkv (batch, n, 3, heads, D) hold queries, keys and values; y, dy (batch, n, heads, D);
   norm (batch, heads, n): logarithm of base 2 of a query's sum of exponentials. A call does the
   heads [first, last) of batch * heads. */
#include "simd.h"

/* out[d][lane] = in[lane * step + d] * scale, zero from `there` lanes on */
static inline void columns(const float *in, int64_t step, int64_t there, float scale, vec out[D]) {
  for (int d = 0; d < D; d++) out[d] = all(0);
  for (int64_t l = 0; l < LANES && l < there; l++)
    for (int d = 0; d < D; d++) out[d][l] = in[l * step + d] * scale;
}

static inline void put_columns(const vec in[D], vec scale, int64_t step, int64_t there,
                               float *out) {
  for (int d = 0; d < D; d++) {
    const vec scaled = in[d] * scale;
    for (int64_t l = 0; l < LANES && l < there; l++) out[l * step + d] = scaled[l];
  }
}

static inline vec add_dot(vec sum, const vec a[D], const float *b) {
  EACH(d, D) sum += a[d] * b[d];
  return sum;
}

static inline void add_outer(vec out[D], vec a, const float *b) {
  EACH(d, D) out[d] += a * b[d];
}

void forward(const float *qkv, int64_t n, int64_t heads, int64_t first, int64_t last, float *y,
             float *norm) {
  const int64_t step = 3 * heads * D, width = heads * D;
  const float scale = LOG2E / sqrtf(D);
  for (int64_t head = first; head < last; head++) {
    const float *q = qkv + head / heads * n * step + head % heads * D;
    const float *k = q + width, *v = k + width;
    float *out = y + head / heads * n * width + head % heads * D;
    for (int64_t i = 0; i < n; i += LANES) {
      vec a[D], o[D], own[D], sum, reference = all(0);
      columns(q + i * step, step, n - i, scale, a);
      columns(k + i * step, step, n - i, 1, own);
      for (int d = 0; d < D; d++) reference += a[d] * own[d];
      for (int attempt = 0;; attempt++) {
        sum = all(0);
        for (int d = 0; d < D; d++) o[d] = all(0);
        for (int64_t j = 0; j < i + LANES && j < n; j++) {
          vec e = exp2_of(add_dot(-reference, a, k + j * step));
          if (j > i) e = choose(lanes() >= (int32_t)(j - i), e, all(0));
          sum += e;
          add_outer(o, e, v + j * step);
        }
        int fine = 1;
        for (int l = 0; l < LANES; l++) fine &= sum[l] < OVERFLOW;
        if (fine || attempt) break;
        for (int64_t j = 0; j < i + LANES && j < n; j++) {
          const vec s = add_dot(all(0), a, k + j * step);
          const ivec sees = lanes() >= (int32_t)(j - i);
          reference = choose(sees & (s > reference), s, reference);
        }
      }
      put_columns(o, 1 / sum, width, n - i, out + i * width);
      for (int64_t l = 0; l < LANES && i + l < n; l++)
        norm[head * n + i + l] = reference[l] + log2f(sum[l]);
    }
  }
}

/* scratch: room for n floats */
void backward(const float *qkv, const float *y, const float *norm, const float *dy, int64_t n,
              int64_t heads, int64_t first, int64_t last, float *scratch, float *dqkv) {
  const int64_t step = 3 * heads * D, width = heads * D;
  const float scale = LOG2E / sqrtf(D), share = 1 / sqrtf(D);
  for (int64_t head = first; head < last; head++) {
    const int64_t at = head / heads * n * step + head % heads * D;
    const int64_t at_y = head / heads * n * width + head % heads * D;
    const float *q = qkv + at, *k = q + width, *v = k + width, *g = dy + at_y;
    const float *norms = norm + head * n;
    /* With p the probabilities and g the gradient of y: d score = p (g v - g y). */
    for (int64_t i = 0; i < n; i++) {
      float sum = 0;
      for (int d = 0; d < D; d++) sum += g[i * width + d] * y[at_y + i * width + d];
      scratch[i] = sum;
    }
    for (int64_t i = 0; i < n; i += LANES) { /* 16 queries: the gradient of queries */
      vec a[D], b[D], dq[D], minus_norm = all(0), minus_along = all(0);
      columns(q + i * step, step, n - i, scale, a);
      columns(g + i * width, width, n - i, 1, b);
      for (int64_t l = 0; l < LANES && i + l < n; l++) {
        minus_norm[l] = -norms[i + l];
        minus_along[l] = -scratch[i + l];
      }
      for (int d = 0; d < D; d++) dq[d] = all(0);
      for (int64_t j = 0; j < i + LANES && j < n; j++) {
        vec p = exp2_of(add_dot(minus_norm, a, k + j * step));
        if (j > i) p = choose(lanes() >= (int32_t)(j - i), p, all(0));
        add_outer(dq, p * add_dot(minus_along, b, v + j * step), k + j * step);
      }
      put_columns(dq, all(share), step, n - i, dqkv + at + i * step);
    }
    for (int64_t j = 0; j < n; j += LANES) { /* 16 keys: the gradients of keys and values */
      vec a[D], b[D], dk[D], dv[D];
      columns(k + j * step, step, n - j, scale, a);
      columns(v + j * step, step, n - j, 1, b);
      for (int d = 0; d < D; d++) dk[d] = dv[d] = all(0);
      for (int64_t i = j; i < n; i++) {
        vec p = exp2_of(add_dot(all(-norms[i]), a, q + i * step));
        if (i < j + LANES) p = choose(lanes() <= (int32_t)(i - j), p, all(0));
        const vec ds = p * add_dot(all(-scratch[i]), b, g + i * width);
        add_outer(dv, p, g + i * width);
        add_outer(dk, ds, q + i * step);
      }
      put_columns(dk, all(share), step, n - j, dqkv + at + width + j * step);
      put_columns(dv, all(1), step, n - j, dqkv + at + 2 * width + j * step);
    }
  }
}
