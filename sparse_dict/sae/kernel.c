/* The sparse autoencoder's training step over active entries only, of many dictionaries at once.

   With ReLU and L1, everything after the encoder's product is exactly zero wherever a feature is
   inactive: the decoder's product, the gradient of the code, and both weight gradients. At an L0
   of 5-40 out of hundreds this does a few percent of the dense arithmetic, with no approximation.

   A batch is cut into panels of 64 rows, and 8 panels make a slab. For each slab first every panel
   is encoded (a task each: rows do not depend on each other), then every block of features gets
   its gradients and behind the last slab its update (a task each: nor do features). A task's
   arithmetic does not depend on who does it, nor on the number of threads or of dictionaries: so
   neither does the result, bit for bit.

   Compiled per width: -DD=<d_in rounded up to a multiple of 16>. Vectors are GCC/Clang vector
   extensions, so the same source runs on x86 and ARM; AVX-512 is used by name where it helps.

   All matrices are row-major float32. Row r of X, R: one activation. Row k of W: one feature. */
#include "dictionary.h"
#include "encode.h"
#include "threads.h"
#include "update.h"

/* The buffers of one dictionary's step while it is being made. */
struct buffers {
  struct entries entries[SLAB];
  float *R;              /* (SLAB * PANEL, D) */
  float *thresholds;     /* (size,) JumpReLU's */
  float *z, *scratch;    /* of `choose`, for each of the tasks of a slab; NULL if none chooses */
  struct panel_sums *sums; /* one for each panel of the batch */
};

struct step {
  struct threads *threads;
  const struct dictionary *dictionaries;
  int64_t *live; /* which of them are trained, in the order in which they are begun */
  const struct numbers *numbers;
  int n_buffers; /* one set for each thread */
  struct buffers *buffers;
  void *memory;  /* of all sets and of the batch */
  int64_t size;  /* features of the largest */
  int low, choosing; /* bfloat16 is needed; some keep the largest codes */
  /* the batch */
  struct panel *panels;
  int64_t n_panels, room; /* panels there are, panels there is memory for */
  float *X_t;
  int32_t *X_low;
  int64_t rows, seen;
};

/* Panels of a task of the encoder. */
static int64_t group(const struct dictionary *d) {
  return d->together ? d->together / PANEL : 1;
}

static int64_t slab_panels(const struct step *s, int64_t slab) {
  const int64_t left = s->n_panels - slab * SLAB;
  return left < SLAB ? left : SLAB;
}

static int64_t slabs(const struct step *s) { return (s->n_panels + SLAB - 1) / SLAB; }

/* Phases: the beginning; encoder and update of each slab in turn; the end. */
static int64_t tasks(const void *context, int64_t job, int64_t phase) {
  const struct step *s = context;
  const struct dictionary *d = s->dictionaries + s->live[job];
  const int64_t last = 2 * slabs(s) + 1;
  if (phase == 0 || phase == last) return 1;
  if (phase > last) return 0;
  if (phase % 2 == 0) return (d->size + BLOCK - 1) / BLOCK;
  return (slab_panels(s, phase / 2) + group(d) - 1) / group(d);
}

static void encode(const struct step *s, const struct dictionary *d, struct buffers *b,
                   int64_t slab, int64_t task) {
  const int64_t first = task * group(d), left = slab_panels(s, slab) - first;
  const int64_t count = left < group(d) ? left : group(d);
  const struct panel *panels = s->panels + slab * SLAB + first;
  const float *thresholds = d->log_threshold ? b->thresholds : NULL;
  struct panel_sums *sums = b->sums + slab * SLAB + first;
  if (d->k) {
    const int64_t each = d->size * PANEL;
    sums->floor = choose(d, panels, count, b->z + first * each,
                         b->scratch + first * (each + LANES), b->entries + first);
  } else {
    find_active(d, thresholds, panels, b->entries + first);
  }
  for (int64_t i = 0; i < count; i++)
    reconstruct(d, thresholds, panels + i, b->entries + first + i, b->R + (first + i) * PANEL * D,
                sums + i);
}

/* Sums and running floors, in the order of the panels; and what is added to reconstructions. */
static void finish(const struct step *s, const struct dictionary *d, const struct numbers *n,
                   const struct buffers *b) {
  for (int64_t i = 0; i < s->n_panels; i++) {
    const struct panel_sums *sums = b->sums + i;
    d->sums[0] += sums->squared_error;
    d->sums[1] += sums->codes;
    d->sums[2] += (double)sums->active;
    if (d->batch_floor && i % group(d) == 0)
      *d->batch_floor +=
          (sums->floor - *d->batch_floor) * (*d->batch_floor == 0.0f ? 1.0f : d->floor_pace);
  }
  d->sums[3] += (double)s->rows;
  if (!d->b_dec) return;
  float G[D] __attribute__((aligned(64))) = {0};
  for (int64_t i = 0; i < s->n_panels; i++)
    for (int j = 0; j < D; j++) G[j] += n->scale * b->sums[i].residual[j];
  adam(d->b_dec, G, d->m_b_dec, d->v_b_dec, D, n);
}

static void run(void *context, int64_t job, int64_t phase, int64_t task, int slot) {
  const struct step *s = context;
  const struct dictionary *d = s->dictionaries + s->live[job];
  const struct numbers *n = s->numbers + s->live[job];
  struct buffers *b = s->buffers + slot;
  const int64_t last = slabs(s) - 1, slab = (phase - 1) / 2;
  if (phase == 0) {
    for (int64_t k = 0; d->log_threshold && k < d->size; k++)
      b->thresholds[k] = expf(d->log_threshold[k]);
  } else if (slab > last) {
    finish(s, d, n, b);
  } else if (phase % 2) {
    encode(s, d, b, slab, task);
  } else {
    const struct slab part = {s->panels + slab * SLAB, b->entries, b->R, slab_panels(s, slab)};
    update_block(d, n, d->log_threshold ? b->thresholds : NULL, task * BLOCK, &part,
                 slab > 0 || n->added, slab == last, s->seen);
  }
}

/* The next `bytes` of memory laid out from *at on, in whole cache lines. */
static void *take(uintptr_t *at, int64_t bytes) {
  const uintptr_t here = *at;
  *at += ((uintptr_t)bytes + 63) / 64 * 64;
  return (void *)here;
}

/* Lay out what steps on so many panels need, from `at` on; returns its end. */
static uintptr_t lay_out(struct step *s, uintptr_t at, int64_t panels) {
  const int64_t codes = sizeof(float) * (s->size * PANEL + LANES);
  s->panels = take(&at, sizeof(struct panel) * panels);
  s->X_t = take(&at, sizeof(float) * panels * PANEL * D);
  s->X_low = take(&at, s->low * sizeof(int32_t) * panels * PANEL * D / 2);
  for (struct buffers *b = s->buffers; b < s->buffers + s->n_buffers; b++) {
    for (int p = 0; p < SLAB; p++) {
      b->entries[p].rows = take(&at, s->size * sizeof(uint64_t));
      b->entries[p].start = take(&at, s->size * sizeof(int32_t));
      b->entries[p].codes = take(&at, codes);
    }
    b->R = take(&at, sizeof(float) * SLAB * PANEL * D);
    b->thresholds = take(&at, sizeof(float) * s->size);
    b->z = take(&at, s->choosing * SLAB * codes);
    b->scratch = take(&at, s->choosing * SLAB * codes);
    b->sums = take(&at, sizeof(struct panel_sums) * panels);
  }
  return at;
}

void step_close(struct step *s) {
  if (s->threads) threads_close(s->threads);
  free(s->memory);
  free(s->buffers);
  free(s->live);
  free(s);
}

/* Make ready for steps of `count` dictionaries, which stay where they are until `step_close`.
   NULL if there is not enough memory. */
struct step *step_open(const struct dictionary *dictionaries, int64_t count, int n_threads) {
  struct step *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  for (int64_t i = 0; i < count; i++) {
    if (dictionaries[i].size > s->size) s->size = dictionaries[i].size;
    s->choosing |= dictionaries[i].k > 0;
    s->low |= dictionaries[i].bf16;
  }
  s->dictionaries = dictionaries;
  s->n_buffers = n_threads;
  s->buffers = calloc((size_t)n_threads, sizeof *s->buffers);
  s->live = calloc((size_t)count, sizeof *s->live);
  s->threads = threads_open(n_threads, count, s, tasks, run);
  if (s->buffers && s->live && s->threads) return s;
  step_close(s);
  return NULL;
}

static int make_room(struct step *s, int64_t panels) {
  if (panels <= s->room) return 1;
  free(s->memory);
  s->memory = aligned_alloc(64, lay_out(s, 0, panels));
  s->room = s->memory ? panels : 0;
  lay_out(s, (uintptr_t)s->memory, panels);
  return s->room > 0;
}

/* One step on the batch X (rows, D), of which Y (rows, D) is to be reconstructed, of the `n_live`
   dictionaries listed in `live`, begun in that order, with numbers[i] for dictionary i. `seen` is
   noted for features that are active. Returns whether there was enough memory. */
int step_run(struct step *s, const int64_t *live, int64_t n_live, const struct numbers *numbers,
             const float *X, const float *Y, int64_t rows, int64_t seen) {
  s->n_panels = (rows + PANEL - 1) / PANEL;
  if (!make_room(s, s->n_panels)) return 0;
  memcpy(s->live, live, sizeof *live * (size_t)n_live);
  s->numbers = numbers;
  s->rows = rows;
  s->seen = seen;
  for (int64_t i = 0; i < s->n_panels; i++) {
    const int64_t left = rows - i * PANEL;
    struct panel *p = s->panels + i;
    float *X_t = s->X_t + i * PANEL * D;
    int32_t *low = s->X_low + i * PANEL * D / 2;
    *p = (struct panel){X + i * PANEL * D, Y + i * PANEL * D, X_t, low,
                        left < PANEL ? left : PANEL};
    transpose(p->X, p->rows, X_t);
    if (s->low) round_panel(X_t, low);
  }
  do_jobs(s->threads, n_live);
  return 1;
}
