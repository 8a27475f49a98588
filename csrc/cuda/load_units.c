#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "cuda/cuda.h"
#include "cuda/load.h"

typedef struct loader {
    mimo_cuda *cuda;
    const mimo_load_units *units;
    const atomic_bool *cancel;
    uint8_t **staging; /* [threads] */
    pthread_mutex_t mutex;
    atomic_bool failed;
    mimo_error error;
} loader;

static mimo_status load_unit(const loader *l, size_t unit, size_t worker, mimo_error *err)
{
    const mimo_load_units *u = l->units;
    size_t low = 0, high = u->items; /* the last item with first <= unit */
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        *(u->first[middle] <= unit ? &low : &high) = middle;
    }
    return u->load(u->context, low, unit - u->first[low], l->staging[worker], err);
}

static void load_worker(void *context, mimo_worker *worker)
{
    loader *l = context;
    const size_t units = l->units->first[l->units->items];
    mimo_error error = {0};
    mimo_status status = mimo_cuda_enter(&l->cuda->device, &error);
    for (size_t unit; status == MIMO_OK && (unit = mimo_pool_take(worker)) < units && !atomic_load(&l->failed);)
        status = atomic_load(l->cancel) ? MIMO_FAIL(&error, MIMO_ERR_ENGINE, "loading was cancelled")
                                        : load_unit(l, unit, worker->index, &error);
    if (status == MIMO_OK)
        return;
    pthread_mutex_lock(&l->mutex);
    if (!atomic_exchange(&l->failed, true))
        l->error = error;
    pthread_mutex_unlock(&l->mutex);
}

static mimo_status run(loader *l, mimo_error *err)
{
    const size_t threads = mimo_pool_threads(l->cuda->pool);
    MIMO_TRY(mimo_alloc_array(&l->staging, threads, sizeof *l->staging, "loader", err));
    for (size_t i = 0; i < threads; i++)
        MIMO_TRY(
            mimo_cuda_alloc_host(&l->cuda->device, &l->staging[i], l->units->staging_bytes, "loader buffers", err));
    mimo_pool_run(l->cuda->pool, load_worker, l);
    if (l->error.code != MIMO_OK)
        *err = l->error;
    return l->error.code;
}

mimo_status mimo_cuda_load_units(mimo_cuda *cuda, const mimo_load_units *units, const atomic_bool *cancel,
                                 mimo_error *err)
{
    loader l = {.cuda = cuda, .units = units, .cancel = cancel};
    pthread_mutex_init(&l.mutex, NULL);
    const mimo_status status = run(&l, err);
    for (size_t i = 0; l.staging != NULL && i < mimo_pool_threads(cuda->pool); i++)
        mimo_cuda_release_host(&cuda->device, l.staging[i]);
    mimo_free(l.staging);
    pthread_mutex_destroy(&l.mutex);
    return status;
}
