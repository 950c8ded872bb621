/* What a step reads and changes; `step_cpu.py` mirrors both structs. */
#ifndef DICTIONARY_H
#define DICTIONARY_H
#include <stdint.h>

/* One dictionary. Matrices are row-major, (size, D): row k is feature k. It reads X and reconstructs
   Y, which is X but for a transcoder; D is the larger width of the two, rounded up. */
struct dictionary {
  float *W_enc, *W_dec, *b; /* W_enc == W_dec: tied weights */
  float *m_enc, *v_enc, *m_dec, *v_dec, *m_b, *v_b;
  float *b_dec, *m_b_dec, *v_b_dec; /* (D,) a transcoder's; otherwise NULL */
  float *log_threshold, *m_threshold, *v_threshold; /* JumpReLU; otherwise NULL */
  float *batch_floor;                               /* BatchTopK; otherwise NULL */
  int64_t *last_fired;
  double *sums; /* squared error, codes, active entries, rows */
  float *G_enc, *G_dec, *G_b, *G_threshold; /* gradients, between the slabs of a large batch */
  int64_t size;
  int64_t k;        /* TopK, BatchTopK; otherwise 0 */
  int64_t together; /* rows over which BatchTopK chooses; otherwise 0 */
  float band;       /* half the width of JumpReLU's kernel */
  float floor_pace; /* of the running batch_floor */
  int32_t bf16;     /* find the active entries by products of values rounded to bfloat16 */
  int32_t project;  /* take the part along each decoder row out of its gradient */
  int32_t aligned;  /* keep each encoder row times its decoder row at one */
};

/* The numbers of one step of one dictionary. */
struct numbers {
  float rate, beta1, beta2, root, eps; /* rate, root: of Adam, with its bias corrections */
  float scale, penalty, l0; /* 2 / values of the batch; L1's and L0's coefficient / its rows */
  int32_t added;               /* G_* hold gradients that the step's own are added to */
};

#endif
