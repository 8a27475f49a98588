#include <string.h>

#include "base/alloc.h"
#include "cpu/cpu.h"
#include "cpu/draft.h"
#include "cpu/profile.h"

static void parallel(mimo_backend *self, void (*fn)(void *context, size_t i, size_t worker), void *context, size_t n)
{
    mimo_pool_parallel(((mimo_cpu *)self)->pool, fn, context, n);
}

static void count_weights(mimo_cpu *cpu)
{
    mimo_memory *memory = &cpu->base.memory;
    memory->draft_weights = cpu->draft != NULL ? cpu->draft->cpu.slab_bytes : 0;
    memory->weights = cpu->slab_bytes + memory->draft_weights;
}

static mimo_status load(mimo_backend *self, const mimo_file *files, atomic_uint_fast64_t *done,
                        const atomic_bool *cancel, mimo_error *err)
{
    mimo_cpu *cpu = (mimo_cpu *)self;
    MIMO_TRY(mimo_cpu_load(cpu, files, done, cancel, err));
    const mimo_status status = cpu->draft != NULL ? mimo_cpu_draft_load(cpu->draft, files, done, cancel, err) : MIMO_OK;
    if (status != MIMO_OK)
        mimo_cpu_release_weights(cpu);
    count_weights(cpu);
    return status;
}

static mimo_status kv_open(mimo_backend *self, mimo_kv **out, mimo_error *err)
{
    const mimo_cpu *cpu = (const mimo_cpu *)self;
    return mimo_kv_open(out, &cpu->kv_layout, cpu->draft != NULL ? &cpu->draft->cpu.kv_layout : NULL, err);
}

static mimo_status kv_reserve(mimo_backend *self, mimo_kv *kv, size_t positions, mimo_error *err)
{
    (void)self;
    return mimo_kv_reserve(kv, positions, err);
}

static void kv_trim(mimo_backend *self, mimo_kv *kv, size_t positions)
{
    (void)self;
    mimo_kv_trim(kv, positions);
}

static void kv_copy(mimo_backend *self, mimo_kv *to, const mimo_kv *from, size_t positions)
{
    (void)self;
    mimo_kv_copy(to, from, positions);
}

static bool kv_can_cut(const mimo_backend *self, const mimo_kv *kv, size_t kept)
{
    const mimo_cpu *cpu = (const mimo_cpu *)self;
    return mimo_span_can_cut(cpu->config->attention[MIMO_SLIDING].window, cpu->kv_layout.ring, kv->written, kept);
}

static void kv_close(mimo_backend *self, mimo_kv *kv)
{
    (void)self;
    mimo_kv_close(kv);
}

void mimo_cpu_close_parts(mimo_cpu *cpu)
{
    mimo_cpu_release_weights(cpu);
    mimo_free(cpu->panels);
    mimo_free(cpu->scratch);
    mimo_free(cpu->profile);
    mimo_free(cpu->workspace);
}

static void cpu_close(mimo_backend *self)
{
    mimo_cpu *cpu = (mimo_cpu *)self;
    mimo_pool_close(cpu->pool);
    mimo_cpu_draft_close(cpu->draft);
    mimo_cpu_close_parts(cpu);
    mimo_free(cpu);
}

void mimo_cpu_count_kv(mimo_cpu *cpu, const mimo_kv_layout *layout)
{
    cpu->base.memory.kv_per_position += layout->chunk_bytes[MIMO_FULL] / MIMO_KV_CHUNK;
    cpu->base.memory.kv_fixed += layout->chunk_bytes[MIMO_SLIDING] * (layout->ring / MIMO_KV_CHUNK);
}

static mimo_status open_parts(mimo_cpu *cpu, const mimo_draft *draft, const mimo_backend_options *options,
                              mimo_error *err)
{
    MIMO_TRY(mimo_kernels_choose(&cpu->kernels, options->variant, err));
    cpu->base.variant = cpu->kernels->name;
    mimo_plan_build(&cpu->plan, cpu->config, options->max_rows);
    MIMO_TRY(mimo_plan_check(&cpu->plan, cpu->config, err));
    mimo_kv_layout_init(&cpu->kv_layout, cpu->config, cpu->exact, cpu->max_rows);
    cpu->base.memory.kv_chunk = MIMO_KV_CHUNK;
    mimo_cpu_count_kv(cpu, &cpu->kv_layout);
    MIMO_TRY(mimo_cpu_plan_weights(cpu, err));
    MIMO_TRY(mimo_cpu_open_workspace(cpu, err));
    if (draft != NULL)
        MIMO_TRY(mimo_cpu_draft_open(cpu, draft, err));
    count_weights(cpu);
    return mimo_pool_open(&cpu->pool, cpu->threads, options->pin, options->nodes, err);
}

mimo_status mimo_cpu_backend_open(mimo_backend **out, const mimo_config *config, const mimo_weights *weights,
                                  const mimo_draft *draft, const mimo_backend_options *options, mimo_error *err)
{

    mimo_cpu *cpu;
    MIMO_TRY(mimo_alloc_array(&cpu, 1, sizeof *cpu, "CPU engine", err));
    cpu->base = (mimo_backend){
        .name = "cpu",
        .load = load,
        .step = mimo_cpu_step,
        .set_profile = mimo_cpu_set_profile,
        .read_profile = mimo_cpu_read_profile,
        .parallel = parallel,
        .kv_open = kv_open,
        .kv_reserve = kv_reserve,
        .kv_trim = kv_trim,
        .kv_copy = kv_copy,
        .kv_can_cut = kv_can_cut,
        .kv_close = kv_close,
        .close = cpu_close,
    };
    cpu->config = config;
    cpu->weights = weights;
    cpu->exact = options->exact;
    cpu->threads = options->threads;
    cpu->max_rows = options->max_rows;
    const mimo_status status = open_parts(cpu, draft, options, err);
    if (status != MIMO_OK) {
        cpu_close(&cpu->base);
        return status;
    }
    *out = &cpu->base;
    return MIMO_OK;
}
