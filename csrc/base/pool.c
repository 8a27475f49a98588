#define _GNU_SOURCE
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

/* Spins before yielding: about 5 us, what workers of one operation differ by when each has a core. More would be burnt
 * at every barrier when they share one. Yields before sleeping: about 1 ms of a free core, longer than what the driver
 * does between steps; a sleeper costs its waker a system call and itself some 50 us. */
enum { SPINS = 256, YIELDS = 2000 };

typedef struct counter {
    _Alignas(64) atomic_size_t taken;
} counter;

struct mimo_pool {
    size_t threads;
    pthread_t *thread; /* [threads - 1]; worker i is thread[i - 1] */

    cpu_set_t cores; /* that this process may use */
    bool pin, placed_caller;
    size_t nodes, first[MIMO_MAX_NODES + 1]; /* workers before those of a node */
    cpu_set_t *node_cores;                   /* [nodes]; of no use with one */
    int spins;

    mimo_pool_fn *fn;
    void *context;

    /* Each on a cache line of its own: they are written by different workers at different times. */
    _Alignas(64) atomic_size_t generation; /* runs started */
    _Alignas(64) atomic_size_t running;    /* workers that have not returned from this run */
    _Alignas(64) atomic_size_t arrived;    /* at the barrier */
    _Alignas(64) atomic_size_t passed;     /* barriers passed since the pool began */
    counter units[2][MIMO_MAX_NODES];      /* of even and odd phases */

    _Alignas(64) atomic_bool closing;
    atomic_size_t sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static size_t node_of(const mimo_pool *pool, size_t index)
{
    size_t node = 0;
    while (index >= pool->first[node + 1])
        node++;
    return node;
}

/* The index-th core of a set alone, in turn. */
static cpu_set_t one_core(const cpu_set_t *cores, size_t index)
{
    size_t left = index % (size_t)CPU_COUNT(cores);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, cores) && left-- == 0)
            CPU_SET(core, &one);
    return one;
}

/* Puts the calling thread on its core or node. Best effort: a worker that may not move works where it is. */
static void place_self(const mimo_pool *pool, size_t index)
{
    const size_t node = node_of(pool, index);
    cpu_set_t to = pool->nodes > 1 ? pool->node_cores[node] : pool->cores;
    if (pool->pin)
        to = one_core(&to, index - pool->first[node]);
    if (pool->pin || pool->nodes > 1)
        (void)pthread_setaffinity_np(pthread_self(), sizeof to, &to);
}

/* Spreads the workers over the nodes, as many as each has of the cores. Nodes without cores have no workers. */
static mimo_status place_workers(mimo_pool *pool, const mimo_nodes *nodes, mimo_error *err)
{
    pool->nodes = 1;
    pool->first[1] = pool->threads;
    size_t cores[MIMO_MAX_NODES + 1] = {0}; /* before those of a node */
    if (nodes == NULL || nodes->count < 2)
        return MIMO_OK;
    MIMO_TRY(mimo_alloc_array(&pool->node_cores, nodes->count, sizeof *pool->node_cores, "cores of nodes", err));
    for (size_t n = 0; n < nodes->count; n++) {
        for (size_t core = 0; core < MIMO_MAX_CORES && core < CPU_SETSIZE; core++)
            if (nodes->cores[n][core / 64] >> core % 64 & 1)
                CPU_SET(core, &pool->node_cores[n]);
        cores[n + 1] = cores[n] + (size_t)CPU_COUNT(&pool->node_cores[n]);
    }
    if (cores[nodes->count] == 0)
        return MIMO_OK;
    pool->nodes = nodes->count;
    for (size_t n = 0; n <= nodes->count; n++)
        pool->first[n] = pool->threads * cores[n] / cores[nodes->count];
    return MIMO_OK;
}

static void wake_sleepers(mimo_pool *pool)
{
    if (atomic_load(&pool->sleepers) == 0)
        return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

/* Waits until *value != old. Whoever changes the value calls wake_sleepers after it. */
static void wait_change(mimo_pool *pool, atomic_size_t *value, size_t old)
{
    for (int i = 0; i < pool->spins; i++) {
        if (atomic_load_explicit(value, memory_order_acquire) != old)
            return;
        relax();
    }
    for (int i = 0; i < YIELDS; i++) {
        if (atomic_load_explicit(value, memory_order_acquire) != old)
            return;
        sched_yield();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(value) == old && !atomic_load(&pool->closing))
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

typedef struct start {
    mimo_pool *pool;
    size_t index;
} start;

static void *thread_main(void *argument)
{
    const start self = *(start *)argument;
    mimo_pool *pool = self.pool;
    mimo_free(argument);
    place_self(pool, self.index);
    const size_t node = node_of(pool, self.index);
    for (size_t seen = 0;; seen++) {
        wait_change(pool, &pool->generation, seen);
        if (atomic_load(&pool->closing))
            return NULL;
        mimo_worker worker = {.pool = pool, .index = self.index, .node = node};
        pool->fn(pool->context, &worker);
        if (atomic_fetch_sub(&pool->running, 1) == 1)
            wake_sleepers(pool);
    }
}

static void join_threads(mimo_pool *pool, size_t made)
{
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->closing, true);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (size_t i = 0; i < made; i++)
        pthread_join(pool->thread[i], NULL);
}

static void release(mimo_pool *pool)
{
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    mimo_free(pool->node_cores);
    mimo_free(pool->thread);
    mimo_free(pool);
}

mimo_status mimo_pool_open(mimo_pool **out, size_t threads, bool pin, const mimo_nodes *nodes, mimo_error *err)
{
    mimo_pool *pool;
    MIMO_TRY(mimo_alloc_array(&pool, 1, sizeof *pool, "worker pool", err));
    pool->threads = threads;
    const bool known = sched_getaffinity(0, sizeof pool->cores, &pool->cores) == 0 && CPU_COUNT(&pool->cores) > 0;
    pool->pin = pin && known;
    pool->spins = known && threads > (size_t)CPU_COUNT(&pool->cores) ? 0 : SPINS;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    mimo_status status = place_workers(pool, nodes, err);
    if (status == MIMO_OK)
        status = mimo_alloc_array(&pool->thread, threads, sizeof *pool->thread, "worker threads", err);
    size_t made = 0;
    for (; status == MIMO_OK && made + 1 < threads; made++) {
        start *argument;
        status = mimo_alloc_array(&argument, 1, sizeof *argument, "worker thread", err);
        if (status != MIMO_OK)
            break;
        *argument = (start){pool, made + 1};
        const int code = pthread_create(&pool->thread[made], NULL, thread_main, argument);
        if (code != 0) {
            mimo_free(argument);
            status = MIMO_FAIL(err, MIMO_ERR_NOMEM, "could not start worker thread %zu of %zu: %s", made + 1, threads,
                               strerror(code));
            break;
        }
    }
    if (status != MIMO_OK) {
        join_threads(pool, made);
        release(pool);
        return status;
    }
    *out = pool;
    return MIMO_OK;
}

void mimo_pool_close(mimo_pool *pool)
{
    if (pool == NULL)
        return;
    join_threads(pool, pool->threads - 1);
    release(pool);
}

size_t mimo_pool_threads(const mimo_pool *pool)
{
    return pool->threads;
}

size_t mimo_pool_nodes(const mimo_pool *pool)
{
    return pool->nodes;
}

size_t mimo_pool_first(const mimo_pool *pool, size_t node)
{
    return pool->first[node];
}

static void reset_units(mimo_pool *pool, size_t phase)
{
    for (size_t n = 0; n < pool->nodes; n++)
        atomic_store_explicit(&pool->units[phase & 1][n].taken, 0, memory_order_relaxed);
}

void mimo_pool_run(mimo_pool *pool, mimo_pool_fn *fn, void *context)
{
    if (!pool->placed_caller) {
        place_self(pool, 0);
        pool->placed_caller = true;
    }
    pool->fn = fn;
    pool->context = context;
    reset_units(pool, 0);
    reset_units(pool, 1);
    atomic_store(&pool->running, pool->threads - 1);
    atomic_fetch_add(&pool->generation, 1);
    wake_sleepers(pool);

    mimo_worker worker = {.pool = pool, .index = 0, .node = node_of(pool, 0)};
    fn(context, &worker);
    for (size_t left; (left = atomic_load_explicit(&pool->running, memory_order_acquire)) != 0;)
        wait_change(pool, &pool->running, left);
}

size_t mimo_pool_take(mimo_worker *worker)
{
    return mimo_pool_take_of(worker, 0);
}

size_t mimo_pool_take_of(mimo_worker *worker, size_t node)
{
    return atomic_fetch_add_explicit(&worker->pool->units[worker->phase & 1][node].taken, 1, memory_order_relaxed);
}

void mimo_pool_barrier(mimo_worker *worker, void (*tail)(void *context), void *context)
{
    mimo_pool *pool = worker->pool;
    const size_t passed = atomic_load_explicit(&pool->passed, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == pool->threads) {
        if (tail != NULL)
            tail(context);
        /* Nobody takes units of the phase that ends here any more; the next phase uses the other counter. */
        reset_units(pool, worker->phase);
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->passed, passed + 1, memory_order_seq_cst);
        wake_sleepers(pool);
    } else {
        wait_change(pool, &pool->passed, passed);
    }
    worker->phase++;
}

typedef struct parallel_call {
    void (*fn)(void *context, size_t i, size_t worker);
    void *context;
    size_t n;
} parallel_call;

static void parallel_worker(void *context, mimo_worker *worker)
{
    const parallel_call *call = context;
    for (size_t i; (i = mimo_pool_take(worker)) < call->n;)
        call->fn(call->context, i, worker->index);
}

void mimo_pool_parallel(mimo_pool *pool, void (*fn)(void *context, size_t i, size_t worker), void *context, size_t n)
{
    if (n == 1) { /* not worth waking anybody */
        fn(context, 0, 0);
        return;
    }
    parallel_call call = {fn, context, n};
    mimo_pool_run(pool, parallel_worker, &call);
}
