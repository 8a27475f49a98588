/* Worker threads that are made once and stay: they run a function together, wait for each other at barriers, and take
 * units of work from a shared counter.
 *
 * A waiting worker spins, then yields, then sleeps; with more threads than cores it yields at once. */
#ifndef MIMO_BASE_POOL_H
#define MIMO_BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { MIMO_MAX_NODES = 16, MIMO_MAX_CORES = 1024 };

/* Cores by memory node, as sets of bits. */
typedef struct mimo_nodes {
    size_t count; /* up to 1: the machine's memory is as near to one core as to another */
    uint64_t cores[MIMO_MAX_NODES][MIMO_MAX_CORES / 64];
} mimo_nodes;

typedef struct mimo_pool mimo_pool;

/* What one worker carries through one mimo_pool_run. */
typedef struct mimo_worker {
    mimo_pool *pool;
    size_t index; /* 0 is the caller of mimo_pool_run */
    size_t phase; /* barriers passed in this run */
    size_t node;  /* of memory */
} mimo_worker;

typedef void mimo_pool_fn(void *context, mimo_worker *worker);

/* threads >= 1, the caller of mimo_pool_run included. pin: each worker stays on one core, in turn of those that the
 * process may use; the caller of mimo_pool_run, from its first run on, on the first. nodes: with several, workers are
 * spread over them by their cores, neighbours side by side, and each stays on its node; NULL: they are all alike. */
MIMO_MUST_CHECK mimo_status mimo_pool_open(mimo_pool **out, size_t threads, bool pin, const mimo_nodes *nodes,
                                           mimo_error *err);
void mimo_pool_close(mimo_pool *pool); /* no run may be under way */
size_t mimo_pool_threads(const mimo_pool *pool);

/* Memory nodes that have workers, at least 1, and the first worker of one; of `nodes`: how many workers there are. */
size_t mimo_pool_nodes(const mimo_pool *pool);
size_t mimo_pool_first(const mimo_pool *pool, size_t node);

/* fn on every worker; returns when all have returned. One run at a time. */
void mimo_pool_run(mimo_pool *pool, mimo_pool_fn *fn, void *context);

/* fn(context, i, worker) for i < n, on all workers; worker < threads. A run of its own. */
void mimo_pool_parallel(mimo_pool *pool, void (*fn)(void *context, size_t i, size_t worker), void *context, size_t n);

/* Inside a run: the next free unit of this phase, from 0. Units are taken in order, by whoever is free. */
size_t mimo_pool_take(mimo_worker *worker);
/* The same where every node has units of its own: the next one of `node`. Not in a phase with the other. */
size_t mimo_pool_take_of(mimo_worker *worker, size_t node);

/* Inside a run: waits until all workers are here; the last to come runs tail(context) (if not NULL) before any goes on.
 * Starts a new phase: its units count from 0. */
void mimo_pool_barrier(mimo_worker *worker, void (*tail)(void *context), void *context);

#endif
