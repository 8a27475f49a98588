#include "cuda/fake_work.h"

#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cuda/device.h"
#include "cuda/host_ctas.h"
#include "cuda/plain_host.h"

/* Memory of CTAs is full of NaN each time, and as short as the layout says it is. */
static int run_resident(const mimo_fake_work *item)
{
    const mimo_fake_resident *r = &item->resident;
    const size_t scratch = (r->layout.activations - MIMO_RESIDENT_SCRATCH) / sizeof(float);
    const size_t ring = r->layout.ring_bytes;
    if (mimo_resident_layout_end(&r->layout) > item->bytes)
        return FAKE_INVALID_VALUE;
    mimo_host_ctas all = {.machine = &r->machine,
                          .lost = r->lost,
                          .patience = r->layout.patience * (uint64_t)MIMO_RESIDENT_TICK_NS,
                          .ctas = item->ctas,
                          .ring_bytes = r->layout.ring_bytes,
                          .scratch_floats = scratch};
    const size_t scratch_bytes = all.ctas * scratch * sizeof(float);
    uint8_t *memory = mimo_alloc(scratch_bytes + all.ctas * ring);
    if (memory == NULL)
        return FAKE_OUT_OF_MEMORY;
    memset(memory, 0xff, scratch_bytes + all.ctas * ring);
    all.scratch = (float *)(void *)memory;
    all.ring = memory + scratch_bytes;
    mimo_host_ctas_run(&all, r->step, r->end);
    mimo_free(memory);
    return 0;
}

static int launch(mimo_fake_work *item, const mimo_cuda_fake_kernels *kernels)
{
    mimo_fake_resident *r = &item->resident;
    void *resident[] = {&r->machine, &r->layout, &r->lost, &r->step, &r->end};
    void *plain[] = {&item->state, &item->layer}, *fill[] = {&item->fill};
    void **parameters = item->kind == WORK_RESIDENT ? resident : item->kind == WORK_VALUES ? fill : plain;
    return kernels->launch(item->kernel, item->ctas, item->threads, (uint32_t)item->bytes, parameters,
                           item->kind == WORK_RESIDENT);
}

int mimo_fake_run(mimo_fake_work *item, const mimo_cuda_fake_kernels *kernels)
{
    if (item->kind == WORK_COPY) {
        memcpy(item->to, item->from, item->bytes);
        return 0;
    }
    if (item->kind == WORK_FILL) {
        memset(item->to, (int)item->layer, item->bytes);
        return 0;
    }
    if (item->kind == WORK_EVENT) {
        *(double *)item->to = 1e3 * mimo_clock_seconds();
        return 0;
    }
    if (kernels != NULL)
        return launch(item, kernels);
    if (item->kind == WORK_VALUES) {
        mimo_fill_host_run(&item->fill, item->ctas);
        return 0;
    }
    static float scratch[MIMO_CUDA_PLAIN_SHARED / sizeof(float)];
    if (item->kind == WORK_RESIDENT)
        return run_resident(item);
    if (item->bytes > sizeof scratch)
        return FAKE_INVALID_VALUE;
    return mimo_plain_host_run(item->kernel, &item->state, item->layer, item->ctas, scratch) != 0 ? 0
                                                                                                  : FAKE_INVALID_VALUE;
}
