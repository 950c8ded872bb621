/* The sparse autoencoder's training step over active entries only.

   With ReLU and L1, everything after the encoder's product is exactly zero wherever a feature is
   inactive: the decoder's product, the gradient of the code, and both weight gradients. At an L0
   of 5-40 out of hundreds this loop does a few percent of the dense arithmetic, with no
   approximation. Python computes the encoder's product for a block of features and a chunk of
   rows (BLAS is best at that), then calls us.

   Compiled per width: -DD=<d_in rounded up to a multiple of 16>. Vectors are GCC/Clang vector
   extensions, so the same source runs on x86 and ARM; AVX-512 only speeds up the scan.

   All matrices are row-major float32. Row r of X, R: one activation. Row k of W: one feature. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64), aligned(4)));
#define LANES 16
#define VECS (D / LANES)

static inline float sum_lanes(vec a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)a);
#else
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += a[i];
  return sum;
#endif
}

static inline float dot(const float *a, const float *b) {
  const vec *u = (const vec *)a, *v = (const vec *)b;
  vec sum = {0};
  for (int j = 0; j < VECS; j++) sum += u[j] * v[j];
  return sum_lanes(sum);
}

/* Residual of an empty code: R = -X. */
void start_residual(const float *X, int64_t n, float *R) {
  for (int64_t i = 0; i < n * D; i++) R[i] = -X[i];
}

/* List the active entries of one feature: z = pre + b with z > floor and z >= row_floor[r].
   Returns how many there are. `rows` and `codes` need room for n + LANES entries. */
static int64_t scan_feature(const float *pre, float b, float floor, const float *row_floor,
                            int64_t n, int32_t *rows, float *codes) {
  int64_t count = 0, r = 0;
#if defined(__AVX512F__)
  const __m512 bias = _mm512_set1_ps(b), least = _mm512_set1_ps(floor);
  const __m512i lane =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; r + LANES <= n; r += LANES) {
    const __m512 z = _mm512_add_ps(_mm512_loadu_ps(pre + r), bias);
    __mmask16 on = _mm512_cmp_ps_mask(z, least, _CMP_GT_OQ);
    if (row_floor) on &= _mm512_cmp_ps_mask(z, _mm512_loadu_ps(row_floor + r), _CMP_GE_OQ);
    _mm512_storeu_ps(codes + count, _mm512_maskz_compress_ps(on, z));
    _mm512_storeu_si512(rows + count, _mm512_maskz_compress_epi32(
                                          on, _mm512_add_epi32(lane, _mm512_set1_epi32((int)r))));
    count += __builtin_popcount(on);
  }
#endif
  for (; r < n; r++) {
    const float z = pre[r] + b;
    codes[count] = z;
    rows[count] = (int32_t)r;
    count += z > floor && (!row_floor || z >= row_floor[r]);
  }
  return count;
}

static void sift_down(float *heap, int64_t k, int64_t i) {
  for (;;) {
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

/* The k-th largest of the positive z = pre[:, r] + b of each row r into floor (n,); tiny but
   positive where fewer than k are. `heaps` needs n * k values. */
void row_floors(const float *pre, const float *b, int64_t K, int64_t n, int64_t k, float *heaps,
                float *floor) {
  for (int64_t i = 0; i < n * k; i++) heaps[i] = 1e-30f;
  for (int64_t r = 0; r < n; r++) floor[r] = 1e-30f;
  for (int64_t f = 0; f < K; f++) {
    const float *p = pre + f * n;
    for (int64_t r = 0; r < n; r++) {
      const float z = p[r] + b[f];
      if (z > floor[r]) {
        heaps[r * k] = z;
        sift_down(heaps + r * k, k, 0);
        floor[r] = heaps[r * k];
      }
    }
  }
}

/* Find the active entries of K features on n rows and add their part of the reconstruction to R.

   pre        (K, n) encoder products without bias
   W_exact    (K, D) or NULL: recompute each code from it in float32 (pre came from bf16 products)
   floors     (K,) or NULL: thresholds per feature (JumpReLU); NULL is ReLU's zero
   band       entries up to this far below their floor are listed too, though not active: they
              move JumpReLU's threshold
   row_floor  (n,) or NULL: thresholds per row (TopK, BatchTopK)
   rows, codes, starts  the lists; starts[k]..starts[k+1] are feature k's entries; `first` is where
                        this block's begin
   fired      (K,) is increased by the number of active rows
   l1         is increased by the sum of the codes
   active     is increased by the number of active entries
   Returns the end of the list. */
int64_t encode_block(const float *X, const float *pre, const float *W_exact, const float *b,
                     const float *W_dec, const float *floors, float band, const float *row_floor,
                     int64_t K, int64_t n, int64_t first, float *R, int32_t *rows, float *codes,
                     int64_t *starts, int64_t *fired, double *l1, int64_t *active) {
  int64_t end = first;
  for (int64_t k = 0; k < K; k++) {
    starts[k] = end;
    const float floor = floors ? floors[k] : 0.0f;
    int64_t count =
        scan_feature(pre + k * n, b[k], floor - band, row_floor, n, rows + end, codes + end);
    if (W_exact) {
      int64_t kept = 0;
      for (int64_t e = end; e < end + count; e++) {
        const float z = dot(W_exact + k * D, X + (int64_t)rows[e] * D) + b[k];
        rows[end + kept] = rows[e];
        codes[end + kept] = z;
        kept += z > floor - band;
      }
      count = kept;
    }
    vec w[VECS];
    memcpy(w, W_dec + k * D, sizeof w);
    float sum = 0;
    int64_t on = 0;
    for (int64_t e = end; e < end + count; e++) {
      const float code = codes[e];
      if (code <= floor) continue;
      vec *r = (vec *)(R + (int64_t)rows[e] * D);
      for (int j = 0; j < VECS; j++) r[j] += code * w[j];
      sum += code;
      on++;
    }
    *l1 += sum;
    *active += on;
    fired[k] += on;
    end += count;
  }
  starts[K] = end;
  return end;
}

/* Sum of squares of the residual. */
double squared_error(const float *R, int64_t n) {
  double sum = 0;
  for (int64_t r = 0; r < n; r++) sum += dot(R + r * D, R + r * D);
  return sum;
}

/* Add the gradients of  scale / 2 * sum R^2 + penalty * sum codes  to G_enc, G_dec (K, D), G_b (K,).
   G_enc may be G_dec (tied weights).

   With floors (K,), G_floor (K,) gets the straight-through gradient of the thresholds for
   scale / 2 * sum R^2 + l0 * (number of active entries), with a rectangular kernel of width
   2 * band (Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12). */
void backward(const float *X, const float *R, const float *W_dec, const int32_t *rows,
              const float *codes, const int64_t *starts, const float *floors, int64_t K,
              float scale, float penalty, float l0, float band, float *G_enc, float *G_dec,
              float *G_b, float *G_floor) {
  for (int64_t k = 0; k < K; k++) {
    if (starts[k] == starts[k + 1]) continue;
    const float floor = floors ? floors[k] : 0.0f;
    vec w[VECS], enc[VECS], dec[VECS];
    memcpy(w, W_dec + k * D, sizeof w);
    memset(enc, 0, sizeof enc);
    memset(dec, 0, sizeof dec);
    float bias = 0, at_floor = 0;
    for (int64_t e = starts[k]; e < starts[k + 1]; e++) {
      const vec *r = (const vec *)(R + (int64_t)rows[e] * D);
      vec sum = {0};
      for (int j = 0; j < VECS; j++) sum += r[j] * w[j];
      const float g_code = scale * sum_lanes(sum);
      if (floors && fabsf(codes[e] - floor) < band)
        at_floor -= (floor * g_code + l0) / (2 * band);
      if (codes[e] <= floor) continue;
      const vec *x = (const vec *)(X + (int64_t)rows[e] * D);
      const float code = scale * codes[e], g = g_code + penalty;
      bias += g;
      for (int j = 0; j < VECS; j++) {
        dec[j] += code * r[j];
        enc[j] += g * x[j];
      }
    }
    vec *gd = (vec *)(G_dec + k * D), *ge = (vec *)(G_enc + k * D);
    for (int j = 0; j < VECS; j++) gd[j] += dec[j];
    for (int j = 0; j < VECS; j++) ge[j] += enc[j];
    G_b[k] += bias;
    if (floors) G_floor[k] += at_floor;
  }
}

/* One Adam update (Kingma and Ba 2015, algorithm 1, with torch.optim.Adam's placing of eps) of
   `count` values; adds the second gradient to the first, and clears both. */
static void adam(float *w, float *g, float *g2, float *m, float *v, int64_t count, float lr,
                 float beta1, float beta2, float eps, float correct1, float correct2) {
  const float step = lr / correct1, root = 1.0f / sqrtf(correct2);
  for (int64_t i = 0; i < count; i++) {
    const float grad = g[i] + g2[i];
    g[i] = g2[i] = 0;
    m[i] = beta1 * m[i] + (1 - beta1) * grad;
    v[i] = beta2 * v[i] + (1 - beta2) * grad * grad;
    w[i] -= step * m[i] / (sqrtf(v[i]) * root + eps);
  }
}

/* Remove from each row of G + G2 the part along the unit row of W (into G; G2 becomes zero). */
static void project(const float *W, float *G, float *G2) {
  for (int j = 0; j < D; j++) {
    G[j] += G2[j];
    G2[j] = 0;
  }
  const float along = dot(G, W);
  for (int j = 0; j < D; j++) G[j] -= along * W[j];
}

/* The optimiser step of one dictionary of K features: Adam on all parameters, then decoder rows
   back to unit norm. Gradients come in two parts, (2, ...) with the given strides in values, and
   are cleared. W_enc == W_dec means tied weights. Moments: m_*, v_* of the parameters' shapes. */
void optimise(int64_t K, float *W_enc, float *W_dec, float *b, float *G_enc, float *G_dec,
              float *G_b, int64_t stride, int64_t stride_b, float *m_enc, float *v_enc,
              float *m_dec, float *v_dec, float *m_b, float *v_b, int32_t project_gradient,
              float lr, float beta1, float beta2, float eps, float correct1, float correct2) {
  /* The moments of a dead feature decay into denormals, which are slow: take them for zero. */
#if defined(__SSE__)
  const unsigned int control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);
#endif
  for (int64_t k = 0; k < K; k++) {
    const int64_t at = k * D;
    if (W_enc != W_dec)
      adam(W_enc + at, G_enc + at, G_enc + stride + at, m_enc + at, v_enc + at, D, lr, beta1,
           beta2, eps, correct1, correct2);
    if (project_gradient) project(W_dec + at, G_dec + at, G_dec + stride + at);
    adam(W_dec + at, G_dec + at, G_dec + stride + at, m_dec + at, v_dec + at, D, lr, beta1, beta2,
         eps, correct1, correct2);
    const float norm = sqrtf(dot(W_dec + at, W_dec + at));
    const float scale = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    for (int j = 0; j < D; j++) W_dec[at + j] *= scale;
  }
  adam(b, G_b, G_b + stride_b, m_b, v_b, K, lr, beta1, beta2, eps, correct1, correct2);
#if defined(__SSE__)
  _mm_setcsr(control);
#endif
}

/* Adam on one vector of K values whose gradient comes in two parts (JumpReLU's thresholds). */
void optimise_vector(int64_t K, float *w, float *G, float *m, float *v, float lr, float beta1,
                     float beta2, float eps, float correct1, float correct2) {
  adam(w, G, G + K, m, v, K, lr, beta1, beta2, eps, correct1, correct2);
}
