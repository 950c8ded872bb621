/* Gradients of features from their active entries, and at once Adam's update: a gradient that is
   complete never reaches memory. */
#ifndef UPDATE_H
#define UPDATE_H
#include "dictionary.h"
#include "encode.h"
#include "vectors.h"

#define BLOCK 32 /* features of a task: whole vectors of their biases */

/* Consecutive panels of a batch with what is known of them. */
struct slab {
  const struct panel *panels;
  const struct entries *entries;
  const float *R; /* (panels * PANEL, D) */
  int64_t count;
};

/* The gradient of one feature. */
struct gradient {
  vec enc[VECS], dec[VECS];
  float b, threshold;
  int fired;
};

/* Add to `g` what a slab contributes to the gradient of

     scale / 2 * sum R^2 + penalty * sum of codes

   or, with `thresholds` (size,), of scale / 2 * sum R^2 + l0 * number of active entries, where the
   threshold's is the straight-through one of a rectangular kernel of width 2 * band (Rajamanoharan
   et al. 2024, arXiv 2407.14435, equations 11 and 12). */
static inline void add_gradient(const struct dictionary *d, const struct numbers *n,
                                const float *thresholds, int64_t k, const struct slab *s,
                                struct gradient *g) {
  const float threshold = thresholds ? thresholds[k] : 0.0f;
  vec w[VECS], enc[VECS], dec[VECS];
  memcpy(w, d->W_dec + k * D, sizeof w);
  memcpy(enc, g->enc, sizeof enc);
  memcpy(dec, g->dec, sizeof dec);
  for (int64_t i = 0; i < s->count; i++) {
    const float *R = s->R + i * PANEL * D, *X = s->panels[i].X;
    const struct entries *found = s->entries + i;
    const float *codes = found->codes + found->start[k];
    for (uint64_t left = found->rows[k]; left; left &= left - 1) {
      const int64_t at = (int64_t)__builtin_ctzll(left) * D;
      const vec *r = (const vec *)(R + at), *x = (const vec *)(X + at);
      const float code = *codes++;
      const float g_code = n->scale * dot((const float *)r, (const float *)w);
      if (thresholds && fabsf(code - threshold) < d->band)
        g->threshold -= (threshold * g_code + n->l0) / (2 * d->band);
      if (code <= threshold) continue;
      const float for_dec = n->scale * code, for_enc = g_code + n->penalty;
      for (int j = 0; j < VECS; j++) {
        dec[j] += for_dec * r[j];
        enc[j] += for_enc * x[j];
      }
      g->b += for_enc;
      g->fired = 1;
    }
  }
  memcpy(g->enc, enc, sizeof enc);
  memcpy(g->dec, dec, sizeof dec);
}

/* One Adam update (Kingma and Ba 2015, algorithm 1, with torch.optim.Adam's placing of eps) of
   `count` vectors. */
static inline void adam(vec *w, const vec *g, vec *m, vec *v, int count, const struct numbers *n) {
  for (int j = 0; j < count; j++) {
    const vec new_m = n->beta1 * m[j] + (1 - n->beta1) * g[j];
    const vec new_v = n->beta2 * v[j] + (1 - n->beta2) * g[j] * g[j];
    m[j] = new_m;
    v[j] = new_v;
    w[j] -= n->rate * new_m / (square_roots(new_v) * n->root + n->eps);
  }
}

/* The same of `count` values, which need not fill vectors. */
static void adam_values(float *w, const float *g, float *m, float *v, int64_t count,
                        const struct numbers *n) {
  for (int64_t i = 0; i < count; i += LANES) {
    const size_t bytes = sizeof(float) * (size_t)(count - i < LANES ? count - i : LANES);
    vec part[4] = {{0}};
    memcpy(part, w + i, bytes);
    memcpy(part + 1, g + i, bytes);
    memcpy(part + 2, m + i, bytes);
    memcpy(part + 3, v + i, bytes);
    adam(part, part + 1, part + 2, part + 3, 1, n);
    memcpy(w + i, part, bytes);
    memcpy(m + i, part + 2, bytes);
    memcpy(v + i, part + 3, bytes);
  }
}

static inline void scale_row(float *row, float factor) {
  for (int j = 0; j < VECS; j++) ((vec *)row)[j] *= factor;
}

/* Adam on one feature's rows, then its decoder row back to unit norm. */
static inline void optimise_rows(const struct dictionary *d, const struct numbers *n, int64_t k,
                                 struct gradient *g) {
  const int64_t at = k * D;
  float *W_dec = d->W_dec + at;
  if (d->W_enc == d->W_dec)
    for (int j = 0; j < VECS; j++) g->dec[j] += g->enc[j];
  else
    adam((vec *)(d->W_enc + at), g->enc, (vec *)(d->m_enc + at), (vec *)(d->v_enc + at), VECS, n);
  if (d->project) {
    const float along = dot((const float *)g->dec, W_dec);
    for (int j = 0; j < VECS; j++) g->dec[j] -= along * ((const vec *)W_dec)[j];
  }
  adam((vec *)W_dec, g->dec, (vec *)(d->m_dec + at), (vec *)(d->v_dec + at), VECS, n);
  const float norm = sqrtf(dot(W_dec, W_dec));
  scale_row(W_dec, 1.0f / (norm > 1e-12f ? norm : 1e-12f));
}

/* Gradients that earlier slabs left, or that were there before the step. */
static inline void load_gradient(const struct dictionary *d, int64_t k, struct gradient *g) {
  memcpy(g->dec, d->G_dec + k * D, sizeof g->dec);
  if (d->W_enc != d->W_dec) memcpy(g->enc, d->G_enc + k * D, sizeof g->enc);
  g->b = d->G_b[k];
  if (d->G_threshold) g->threshold = d->G_threshold[k];
}

static inline void store_gradient(const struct dictionary *d, int64_t k, struct gradient *g) {
  if (d->W_enc != d->W_dec) memcpy(d->G_enc + k * D, g->enc, sizeof g->enc);
  else
    for (int j = 0; j < VECS; j++) g->dec[j] += g->enc[j];
  memcpy(d->G_dec + k * D, g->dec, sizeof g->dec);
  d->G_b[k] = g->b;
  if (d->G_threshold) d->G_threshold[k] = g->threshold;
}

/* Features `first` to first + BLOCK: the gradients of a slab, and behind the `last` one the
   update. `added`: there are gradients that they are added to. */
static void update_block(const struct dictionary *d, const struct numbers *n,
                         const float *thresholds, int64_t first, const struct slab *s, int added,
                         int last, int64_t seen) {
  const int64_t count = d->size - first < BLOCK ? d->size - first : BLOCK;
  float g_b[BLOCK], g_threshold[BLOCK];
  for (int64_t i = 0; i < count; i++) {
    const int64_t k = first + i;
    struct gradient g;
    memset(&g, 0, sizeof g);
    if (added) load_gradient(d, k, &g);
    add_gradient(d, n, thresholds, k, s, &g);
    if (g.fired) d->last_fired[k] = seen;
    if (!last) {
      store_gradient(d, k, &g);
      continue;
    }
    optimise_rows(d, n, k, &g);
    g_b[i] = g.b;
    if (thresholds) g_threshold[i] = g.threshold * thresholds[k]; /* d/d log t = t d/dt */
  }
  if (!last) return;
  adam_values(d->b + first, g_b, d->m_b + first, d->v_b + first, count, n);
  if (thresholds)
    adam_values(d->log_threshold + first, g_threshold, d->m_threshold + first,
                d->v_threshold + first, count, n);
}

#endif
