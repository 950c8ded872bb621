/* Gradients of a block of features from their active entries, and Adam's update while they are in
   the first-level cache: unless a batch has several slabs, they never go further. */
#ifndef UPDATE_H
#define UPDATE_H
#include "dictionary.h"
#include "encode.h"
#include "vectors.h"

/* Features of a task: as many as keep their gradients in the first-level cache. */
#define BLOCK (D <= 128 ? 32 : D <= 2048 ? 4096 / D : 2)

/* Panels whose inputs and residuals stay in the second-level cache; their rows are a multiple of
   what BatchTopK chooses over (`loss.SELECTION`). */
#define SLAB 8

/* Consecutive panels of a batch with what is known of them. */
struct slab {
  const struct panel *panels;
  const struct entries *entries;
  const float *R; /* (panels * PANEL, D) */
  int64_t count;
};

/* Gradients of a block of features: where their rows begin. enc == dec: tied weights. */
struct gradients {
  float *enc, *dec, *b, *threshold;
};

/* What an active entry adds to its feature's gradients: rows of R and X, each times a number. */
struct share {
  const vec *r, *x;
  float dec, enc;
};

/* Vectors of a gradient that are summed in registers. */
#define CHUNK (VECS % 8 == 0 ? 8 : VECS % 4 == 0 ? 4 : VECS % 2 == 0 ? 2 : 1)

static inline void put(vec *to, const vec *sums, int added) {
  for (int i = 0; i < CHUNK; i++)
    if (added) to[i] += sums[i];
    else to[i] = sums[i];
}

/* Add CHUNK vectors, from the j-th on, of one share. */
INLINED void add_share(vec *enc, vec *dec, const struct share *of, int j) {
  EACH(i, CHUNK) {
    dec[i] += of->dec * of->r[j + i];
    enc[i] += of->enc * of->x[j + i];
  }
}

/* The gradients of feature k, row `i` of G, of what a slab contributes to

     scale / 2 * sum R^2 + penalty * sum of codes

   or, with `thresholds` (size,), to scale / 2 * sum R^2 + l0 * number of active entries, where the
   threshold's is the straight-through one of a rectangular kernel of width 2 * band (Rajamanoharan
   et al. 2024, arXiv 2407.14435, equations 11 and 12). `added`: to what is there already. Returns
   whether the feature is active. */
static inline int add_gradients(const struct dictionary *d, const struct numbers *n,
                                const float *thresholds, int64_t k, const struct slab *s,
                                const struct gradients *G, int64_t i, int added) {
  const float threshold = thresholds ? thresholds[k] : 0.0f;
  struct share shares[SLAB * PANEL];
  vec enc[CHUNK] = {{0}}, dec[CHUNK] = {{0}};
  float bias = 0, of_threshold = 0;
  int count = 0;
  for (int64_t p = 0; p < s->count; p++) {
    const float *R = s->R + p * PANEL * D, *X = s->panels[p].X;
    const struct entries *found = s->entries + p;
    const float *codes = found->codes + found->start[k];
    for (uint64_t left = found->rows[k]; left; left &= left - 1) {
      const int64_t at = (int64_t)__builtin_ctzll(left) * D;
      const float code = *codes++;
      const float g_code = n->scale * dot(R + at, d->W_dec + k * D);
      if (thresholds && fabsf(code - threshold) < d->band)
        of_threshold -= (threshold * g_code + n->l0) / (2 * d->band);
      if (code <= threshold) continue;
      shares[count] = (struct share){(const vec *)(R + at), (const vec *)(X + at),
                                     n->scale * code, g_code + n->penalty};
      add_share(enc, dec, shares + count++, 0);
      bias += g_code + n->penalty;
    }
  }
  vec *to_enc = (vec *)(G->enc + i * D), *to_dec = (vec *)(G->dec + i * D);
  for (int j = 0; j < VECS; j += CHUNK) {
    if (j) { /* the first have been summed above, while r was at hand */
      memset(enc, 0, sizeof enc);
      memset(dec, 0, sizeof dec);
      for (int e = 0; e < count; e++) add_share(enc, dec, shares + e, j);
    }
    put(to_dec + j, dec, added);
    put(to_enc + j, enc, added || G->enc == G->dec);
  }
  G->b[i] = added ? G->b[i] + bias : bias;
  if (thresholds) G->threshold[i] = added ? G->threshold[i] + of_threshold : of_threshold;
  return count > 0;
}

/* One Adam update (Kingma and Ba 2015, algorithm 1, with torch.optim.Adam's placing of eps) of
   `count` values. */
static inline void adam(float *w, const float *g, float *m, float *v, int64_t count,
                        const struct numbers *n) {
  const float beta1 = n->beta1, beta2 = n->beta2, rate = n->rate, root = n->root, eps = n->eps;
  for (int64_t i = 0; i + LANES <= count; i += LANES) {
    const vec grad = *(const vec *)(g + i);
    const vec new_m = beta1 * *(vec *)(m + i) + (1 - beta1) * grad;
    const vec new_v = beta2 * *(vec *)(v + i) + (1 - beta2) * grad * grad;
    *(vec *)(m + i) = new_m;
    *(vec *)(v + i) = new_v;
    *(vec *)(w + i) -= rate * new_m / (square_roots(new_v) * root + eps);
  }
  for (int64_t i = count / LANES * LANES; i < count; i++) {
    m[i] = beta1 * m[i] + (1 - beta1) * g[i];
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
    w[i] -= rate * m[i] / (sqrtf(v[i]) * root + eps);
  }
}

/* Take out of rows of G (count, D) their parts along the unit rows of W (Bricken et al. 2023,
   "Towards Monosemanticity", appendix on the autoencoder's training). */
static void project(const float *W, float *G, int64_t count) {
  for (; count; count--, W += D, G += D) add_row(G, -dot(G, W), W);
}

static void normalise(float *W, int64_t count) {
  for (; count; count--, W += D) {
    const float norm = sqrtf(dot(W, W));
    const float factor = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    for (int j = 0; j < VECS; j++) ((vec *)W)[j] *= factor;
  }
}

/* The gradients of rows of encoder and decoder that keep a product of one (state.keep_aligned): of
   G_enc (count, D) the part along the decoder's unit rows W leaves, and G_dec gets its share. */
static void keep_aligned(const float *W, const float *enc, float *G_enc, float *G_dec,
                         int64_t count) {
  for (; count; count--, W += D, enc += D, G_enc += D, G_dec += D) {
    const float along = dot(G_enc, W);
    add_row(G_enc, -along, W);
    add_row(G_dec, -along, enc);
  }
}

/* Move rows of `enc` (count, D) along the unit rows of W until each has a product of one with its
   own. */
static void align(float *enc, const float *W, int64_t count) {
  for (; count; count--, W += D, enc += D) add_row(enc, 1.0f - dot(enc, W), W);
}

/* Adam on `count` features from `first` on, then their decoder rows back to unit norm. G is
   used up. */
static void optimise(const struct dictionary *d, const struct numbers *n, const float *thresholds,
                     int64_t first, int64_t count, const struct gradients *G) {
  const int64_t at = first * D, values = count * D;
  const int aligned = d->aligned && d->W_enc != d->W_dec;
  if (aligned) keep_aligned(d->W_dec + at, d->W_enc + at, G->enc, G->dec, count);
  if (d->project) project(d->W_dec + at, G->dec, count);
  if (d->W_enc != d->W_dec) adam(d->W_enc + at, G->enc, d->m_enc + at, d->v_enc + at, values, n);
  adam(d->W_dec + at, G->dec, d->m_dec + at, d->v_dec + at, values, n);
  normalise(d->W_dec + at, count);
  if (aligned) align(d->W_enc + at, d->W_dec + at, count);
  adam(d->b + first, G->b, d->m_b + first, d->v_b + first, count, n);
  if (!thresholds) return;
  for (int64_t i = 0; i < count; i++) G->threshold[i] *= thresholds[first + i]; /* d/dlog t */
  adam(d->log_threshold + first, G->threshold, d->m_threshold + first, d->v_threshold + first,
       count, n);
}

/* Features `first` to first + BLOCK: the gradients of a slab, and behind the last slab of a batch
   the update. `added`: d->G_* hold gradients that they are added to. */
static void update_block(const struct dictionary *d, const struct numbers *n,
                         const float *thresholds, int64_t first, const struct slab *s, int added,
                         int last, int64_t seen) {
  float rows[2 * BLOCK * D] __attribute__((aligned(64))), values[2 * BLOCK];
  struct gradients G = {rows, rows + BLOCK * D, values, values + BLOCK};
  if (added || !last)
    G = (struct gradients){d->G_enc + first * D, d->G_dec + first * D, d->G_b + first,
                           d->G_threshold ? d->G_threshold + first : NULL};
  else if (d->W_enc == d->W_dec)
    G.enc = G.dec;
  const int64_t count = d->size - first < BLOCK ? d->size - first : BLOCK;
  for (int64_t i = 0; i < count; i++)
    if (add_gradients(d, n, thresholds, first + i, s, &G, i, added)) d->last_fired[first + i] = seen;
  if (last) optimise(d, n, thresholds, first, count, &G);
}

#endif
