/* Threads that share the tasks of many jobs.

   A job is a sequence of phases and each phase a number of tasks that do not depend on each other;
   a phase begins when all tasks of the one before it are done. A thread stays with its job while
   that has tasks, so that what the job touches stays in its cache, then takes up a new job, and
   helps with others' when none is left. Which thread does what never shows in a result. */
#ifndef THREADS_H
#define THREADS_H
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "../machine/vectors.h"

#define SPINS 2000 /* some 20 to 50 microseconds until a thread that waits goes to sleep */

#define STACK (8 << 20)

struct job {
  int64_t phase, next, running; /* the next task of the phase; how many are being done */
  int slot;                     /* of the threads' buffers; -1: not begun or done */
};

struct threads {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  atomic_int version; /* of all that follows; grows when there may be something new to do */
  int sleepers, quit;
  int count, helping; /* threads, the one that calls included; helpers that were begun */
  pid_t owner; /* the process whose helpers they are */
  pthread_t *helpers;
  struct job *jobs;
  int64_t n_jobs, begun, unfinished;
  int *free_slots, n_free;
  /* what the jobs are, given by the caller of `threads_open` */
  void *context;
  int64_t (*tasks)(const void *context, int64_t job, int64_t phase); /* 0: there is no such phase */
  void (*run)(void *context, int64_t job, int64_t phase, int64_t task, int slot);
};

static void announce(struct threads *t) {
  atomic_fetch_add(&t->version, 1);
  if (t->sleepers) pthread_cond_broadcast(&t->changed);
}

/* With the lock held: let others work until there may be something new. */
static void wait_for_change(struct threads *t) {
  const int version = atomic_load(&t->version);
  pthread_mutex_unlock(&t->lock);
  for (int i = 0; i < SPINS && atomic_load(&t->version) == version; i++) {
#if defined(__SSE__)
    _mm_pause();
#endif
  }
  pthread_mutex_lock(&t->lock);
  while (atomic_load(&t->version) == version) {
    t->sleepers++;
    pthread_cond_wait(&t->changed, &t->lock);
    t->sleepers--;
  }
}

static int has_task(const struct threads *t, int64_t i) {
  const struct job *job = t->jobs + i;
  return job->slot >= 0 && job->next < t->tasks(t->context, i, job->phase);
}

/* A job with a task to do, `own` if possible, or -1. */
static int64_t job_to_do(struct threads *t, int64_t own) {
  if (own >= 0 && has_task(t, own)) return own;
  if (t->begun < t->n_jobs) {
    t->jobs[t->begun].slot = t->free_slots[--t->n_free];
    return t->begun++;
  }
  for (int64_t i = 0; i < t->n_jobs; i++)
    if (has_task(t, i)) return i;
  return -1;
}

/* With the lock held: the last task of a phase is done. */
static void next_phase(struct threads *t, int64_t i) {
  struct job *job = t->jobs + i;
  job->phase++;
  job->next = 0;
  if (!t->tasks(t->context, i, job->phase)) {
    t->free_slots[t->n_free++] = job->slot;
    job->slot = -1;
    t->unfinished--;
  }
  announce(t);
}

/* With the lock held: do tasks until all jobs are done. */
static void work(struct threads *t) {
  int64_t i = -1;
  while (t->unfinished) {
    i = job_to_do(t, i);
    if (i < 0) {
      wait_for_change(t);
      continue;
    }
    struct job *job = t->jobs + i;
    const int64_t task = job->next++, phase = job->phase;
    job->running++;
    pthread_mutex_unlock(&t->lock);
    t->run(t->context, i, phase, task, job->slot);
    pthread_mutex_lock(&t->lock);
    if (--job->running == 0 && job->next == t->tasks(t->context, i, phase)) next_phase(t, i);
  }
}

/* The moments of a dead feature decay into denormals, which are slow: treat them as zero. */
static unsigned int flush_denormals(void) {
#if defined(__SSE__)
  const unsigned int before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  return before;
#else
  return 0;
#endif
}

static void restore_denormals(unsigned int before) {
#if defined(__SSE__)
  _mm_setcsr(before);
#else
  (void)before;
#endif
}

static void *helper(void *argument) {
  struct threads *t = argument;
  flush_denormals();
  pthread_mutex_lock(&t->lock);
  while (!t->quit) {
    work(t);
    if (!t->quit) wait_for_change(t);
  }
  pthread_mutex_unlock(&t->lock);
  return NULL;
}

/* Begin helpers for this process: the first one, or one that it forked into. */
static void begin_helpers(struct threads *t) {
  sigset_t all, before;
  pthread_attr_t large; /* some systems give half a MiB of stack, which wide rows would fill */
  pthread_attr_init(&large);
  pthread_attr_setstacksize(&large, STACK);
  pthread_mutex_init(&t->lock, NULL);
  pthread_cond_init(&t->changed, NULL);
  t->owner = getpid();
  t->sleepers = t->quit = t->helping = 0;
  t->unfinished = 0;
  sigfillset(&all); /* signals are for the threads that were there before */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (t->helping < t->count - 1 &&
         !pthread_create(t->helpers + t->helping, &large, helper, t)) /* fewer will do */
    t->helping++;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&large);
}

static void threads_close(struct threads *t) {
  if (t->owner == getpid()) { /* otherwise they are the parent's */
    pthread_mutex_lock(&t->lock);
    t->quit = 1;
    announce(t);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->helping; i++) pthread_join(t->helpers[i], NULL);
  }
  free(t->helpers);
  free(t->jobs);
  free(t->free_slots);
  free(t);
}

/* `count` threads, of which the one that calls is one, for up to `jobs` jobs at a time: `tasks`
   says how many tasks a phase has (0: it does not exist), `run` does one. Helpers begin with the
   first call of `do_jobs`. NULL if there is not enough memory. */
static struct threads *threads_open(int count, int64_t jobs, void *context,
                                    int64_t (*tasks)(const void *, int64_t, int64_t),
                                    void (*run)(void *, int64_t, int64_t, int64_t, int)) {
  struct threads *t = calloc(1, sizeof *t);
  if (!t) return NULL;
  t->count = count;
  t->context = context;
  t->tasks = tasks;
  t->run = run;
  t->helpers = calloc((size_t)count, sizeof *t->helpers);
  t->jobs = calloc((size_t)jobs, sizeof *t->jobs);
  t->free_slots = calloc((size_t)count, sizeof *t->free_slots);
  if (t->helpers && t->jobs && t->free_slots) return t;
  threads_close(t);
  return NULL;
}

/* Do jobs 0 to n_jobs - 1, begun in that order: all tasks of all their phases. */
static void do_jobs(struct threads *t, int64_t n_jobs) {
  if (t->owner != getpid()) begin_helpers(t);
  const unsigned int before = flush_denormals();
  pthread_mutex_lock(&t->lock);
  t->n_jobs = t->unfinished = n_jobs;
  t->begun = 0;
  t->n_free = t->count;
  for (int i = 0; i < t->count; i++) t->free_slots[i] = i;
  for (int64_t i = 0; i < n_jobs; i++) t->jobs[i] = (struct job){.slot = -1};
  announce(t);
  work(t);
  pthread_mutex_unlock(&t->lock);
  restore_denormals(before);
}

#endif
