/* Worker threads that are made once and stay: they run a function together, wait for each other at barriers, and take
 * units of work from a shared counter.
 *
 * A waiting worker spins, then yields, then sleeps; with more threads than cores it yields at once. */
#ifndef MIMO_BASE_POOL_H
#define MIMO_BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

typedef struct mimo_pool mimo_pool;

/* What one worker carries through one mimo_pool_run. */
typedef struct mimo_worker {
    mimo_pool *pool;
    size_t index; /* 0 is the caller of mimo_pool_run */
    size_t phase; /* barriers passed in this run */
} mimo_worker;

typedef void mimo_pool_fn(void *context, mimo_worker *worker);

/* threads >= 1, the caller of mimo_pool_run included. pin: each worker stays on one core, in turn of those that the
 * process may use; the caller of mimo_pool_run, from its first run on, on the first. */
MIMO_MUST_CHECK mimo_status mimo_pool_open(mimo_pool **out, size_t threads, bool pin, mimo_error *err);
void mimo_pool_close(mimo_pool *pool); /* no run may be under way */
size_t mimo_pool_threads(const mimo_pool *pool);

/* fn on every worker; returns when all have returned. One run at a time. */
void mimo_pool_run(mimo_pool *pool, mimo_pool_fn *fn, void *context);

/* Inside a run: the next free unit of this phase, from 0. Units are taken in order, by whoever is free. */
size_t mimo_pool_take(mimo_worker *worker);

/* Inside a run: waits until all workers are here; the last to come runs tail(context) (if not NULL) before any goes on.
 * Starts a new phase: its units count from 0. */
void mimo_pool_barrier(mimo_worker *worker, void (*tail)(void *context), void *context);

#endif
