/* GELU by its tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is
   x times the logistic function of 2 u. Both loops do elements [first, last) of flat arrays. */
#include "simd.h"

#define SLOPE 1.5957691216f /* 2 sqrt(2 / pi) */
#define CUBE 0.044715f

static inline vec logistic(vec x) {
  return 1 / (1 + exp2_of(x * (1 + CUBE * x * x) * (-LOG2E * SLOPE)));
}

static inline vec gradient(vec x) {
  const vec on = logistic(x);
  return on + x * on * (1 - on) * SLOPE * (1 + 3 * CUBE * x * x);
}

void forward(const float *x, int64_t first, int64_t last, float *y) {
  for (int64_t i = first; i < last; i += LANES) {
    vec a = all(0);
    const size_t size = (last - i < LANES ? last - i : LANES) * sizeof(float);
    memcpy(&a, x + i, size);
    a *= logistic(a);
    memcpy(y + i, &a, size);
  }
}

void backward(const float *x, const float *dy, int64_t first, int64_t last, float *dx) {
  for (int64_t i = first; i < last; i += LANES) {
    vec a = all(0), g = all(0);
    const size_t size = (last - i < LANES ? last - i : LANES) * sizeof(float);
    memcpy(&a, x + i, size);
    memcpy(&g, dy + i, size);
    g *= gradient(a);
    memcpy(dx + i, &g, size);
  }
}
