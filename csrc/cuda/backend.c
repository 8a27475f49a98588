#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"

static void parallel(mimo_backend *self, void (*fn)(void *context, size_t i, size_t worker), void *context, size_t n)
{
    mimo_pool_parallel(((mimo_cuda *)self)->pool, fn, context, n);
}

static mimo_status load(mimo_backend *self, const mimo_file *files, atomic_uint_fast64_t *done,
                        const atomic_bool *cancel, mimo_error *err)
{
    return mimo_cuda_load((mimo_cuda *)self, files, done, cancel, err);
}

static mimo_status check(const mimo_backend *self, mimo_error *err)
{
    return mimo_cuda_device_check(&((const mimo_cuda *)self)->device, err);
}

/* ---- caches ---- */

static mimo_status kv_open(mimo_backend *self, mimo_kv **out, mimo_error *err)
{
    mimo_cuda_sequence *sequence;
    MIMO_TRY(mimo_cuda_sequence_open(&((mimo_cuda *)self)->kv, &sequence, err));
    *out = (mimo_kv *)sequence;
    return MIMO_OK;
}

static mimo_status reserve(mimo_cuda *cuda, mimo_cuda_sequence *sequence, size_t positions, mimo_error *err)
{
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    return mimo_cuda_sequence_reserve(&cuda->kv, sequence, positions, err);
}

/* A call of the driver that fails here has lost the device as it would in a step. */
static mimo_status kv_reserve(mimo_backend *self, mimo_kv *kv, size_t positions, mimo_error *err)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    MIMO_TRY(check(self, err));
    mimo_error why = {0};
    const mimo_status status = reserve(cuda, (mimo_cuda_sequence *)kv, positions, &why);
    if (status == MIMO_ERR_ENGINE)
        cuda->device.lost = why;
    MIMO_TRY(check(self, err));
    return status == MIMO_OK ? MIMO_OK : MIMO_FAIL(err, status, "%s", why.text);
}

static void kv_trim(mimo_backend *self, mimo_kv *kv, size_t positions)
{
    mimo_cuda_sequence_trim(&((mimo_cuda *)self)->kv, (mimo_cuda_sequence *)kv, positions);
}

static void kv_copy(mimo_backend *self, mimo_kv *to, const mimo_kv *from, size_t positions)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    if (mimo_cuda_enter(&cuda->device, &cuda->device.lost) == MIMO_OK)
        mimo_cuda_sequence_copy(&cuda->kv, (mimo_cuda_sequence *)to, (const mimo_cuda_sequence *)from, positions);
}

static bool kv_can_cut(const mimo_backend *self, const mimo_kv *kv, size_t kept)
{
    const mimo_cuda *cuda = (const mimo_cuda *)self;
    return mimo_span_can_cut(cuda->target.model.config->attention[MIMO_SLIDING].window, cuda->kv.ring[0],
                             ((const mimo_cuda_sequence *)kv)->written, kept);
}

static void kv_close(mimo_backend *self, mimo_kv *kv)
{
    mimo_cuda_sequence_close(&((mimo_cuda *)self)->kv, (mimo_cuda_sequence *)kv);
}

/* ---- profile ---- */

static void set_profile(mimo_backend *self, bool on)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    cuda->profiling = on;
    cuda->profile = cuda->draft_profile = (mimo_profile){0};
}

static void read_profile(const mimo_backend *self, mimo_profile *target, mimo_profile *drafter)
{
    const mimo_cuda *cuda = (const mimo_cuda *)self;
    *target = cuda->profile;
    *drafter = cuda->draft_profile;
}

/* ---- opening ---- */

static void cuda_close(mimo_backend *self)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    mimo_pool_close(cuda->pool);
    if (cuda->device.retained) {
        (void)!mimo_cuda_enter(&cuda->device, NULL); /* of a lost device all of this fails, and its memory is gone */
        mimo_cuda_unload(cuda);
    }
    if (cuda->resident != NULL)
        mimo_resident_close(cuda->resident);
    mimo_free(cuda->resident);
    mimo_cuda_device_close(&cuda->device);
    mimo_cuda_pool_close(&cuda->kv);
    mimo_cuda_model_close(&cuda->target.model);
    mimo_cuda_model_close(&cuda->drafter.model);
    mimo_free(cuda->index);
    mimo_free(cuda);
}

static uint64_t matrix_bytes(const mimo_cuda_matrix *m)
{
    const uint64_t scales = m->format == MIMO_FORMAT_MXFP4 ? (uint64_t)m->rows * m->cols / 32 : 0;
    return m->rows * (uint64_t)m->row_bytes + scales;
}

/* Weight bytes that a step of one row reads: of the experts K of E. */
static uint64_t read_per_token(const mimo_cuda_model *model)
{
    const mimo_config *c = model->config;
    uint64_t bytes = matrix_bytes(&model->state.head);
    const mimo_cuda_matrix *mlp = model->mlp;
    for (uint32_t i = 0; i < c->layers; i++) {
        const mimo_cuda_layer *layer = &model->layer[i];
        uint64_t mlps = 0;
        for (const mimo_cuda_matrix *end = mlp + 3 * (size_t)model->weights->layer[i].mlps; mlp < end; mlp++)
            mlps += matrix_bytes(mlp);
        bytes += matrix_bytes(&layer->qkv) + matrix_bytes(&layer->out) + matrix_bytes(&layer->router);
        bytes += layer->sparse ? mlps * c->top_k / c->experts : mlps;
    }
    return bytes;
}

static void tell_memory(mimo_cuda *cuda)
{
    const mimo_cuda_memory *m = &cuda->memory;
    const uint64_t chunk = m->chunk[0] + m->chunk[1], sequences = m->ring[0] + m->ring[1] + m->table[0] + m->table[1];
    mimo_memory *told = &cuda->base.memory;
    *told = (mimo_memory){.weights = m->weights + m->draft_weights,
                          .draft_weights = m->draft_weights,
                          .embedding = m->embedding,
                          .workspace = m->tables + m->work + MIMO_CUDA_SEQUENCES * sequences + m->spare * chunk,
                          .kv_per_position = chunk / MIMO_CUDA_CHUNK,
                          .kv_chunk = MIMO_CUDA_CHUNK};
    told->limit = told->weights + told->embedding + told->workspace + (m->chunks - m->spare) * chunk;
    told->read_per_token = read_per_token(&cuda->target.model);
    cuda->base.load_bytes = mimo_cuda_load_bytes(cuda);
}

/* Queues of the resident path, and how much memory it takes. */
static mimo_status plan_resident(mimo_cuda *cuda, mimo_cuda_paged *paged, mimo_error *err)
{
    mimo_gpu gpu = mimo_resident_gpu(&cuda->device);
    gpu.ranks = cuda->ranks;
    gpu.e4m3 = cuda->e4m3;
    const mimo_resident_model target = {&cuda->target.plan, &cuda->target.model},
                              draft = {&cuda->drafter.plan, &cuda->drafter.model};
    cuda->target.model.paged = cuda->drafter.model.paged = true;
    MIMO_TRY(mimo_resident_plan(cuda->resident, &target, cuda->drafter.model.config != NULL ? &draft : NULL, &gpu,
                                cuda->max_context, cuda->exact, err));
    *paged =
        (mimo_cuda_paged){{cuda->resident->page_bytes[0], cuda->resident->page_bytes[1]}, cuda->resident->work_bytes};
    return MIMO_OK;
}

static mimo_status open_models(mimo_cuda *cuda, const mimo_config *config, const mimo_weights *weights,
                               const mimo_draft *draft, mimo_error *err)
{
    mimo_cuda_tape *target = &cuda->target;
    if (config->experts > MIMO_MOE_EXPERTS)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: config.experts: expected at most %d, found %u",
                         MIMO_MOE_EXPERTS, config->experts);
    MIMO_TRY(mimo_cuda_model_open(&target->model, config, weights, NULL, err));
    mimo_plan_build(&target->plan, config, MIMO_CUDA_ROWS);
    MIMO_TRY(mimo_plan_check(&target->plan, config, err));
    if (draft != NULL)
        MIMO_TRY(mimo_cuda_draft_open(cuda, draft, err));
    mimo_cuda_paged paged;
    if (cuda->resident != NULL)
        MIMO_TRY(plan_resident(cuda, &paged, err));
    MIMO_TRY(mimo_cuda_plan_memory(&cuda->memory, config, weights, draft, cuda->resident != NULL ? &paged : NULL,
                                   cuda->exact, cuda->max_context, cuda->device.available, cuda->kept, err));
    mimo_cuda_places places = {0};
    mimo_cuda_place(&target->model, NULL, &places, cuda->exact, cuda->max_context);
    if (draft != NULL)
        mimo_cuda_place(&cuda->drafter.model, &target->model, &places, cuda->exact, cuda->max_context);
    return MIMO_OK;
}

static mimo_status choose_path(mimo_cuda *cuda, const char *variant, mimo_error *err)
{
    if (variant == NULL || strcmp(variant, cuda->base.variant) == 0)
        return MIMO_OK;
    cuda->e4m3 = strcmp(variant, "resident-e4m3") == 0;
    if (strcmp(variant, "resident") != 0 && !cuda->e4m3)
        return MIMO_FAIL(err, MIMO_ERR_VALUE,
                         "variant: expected 'plain', 'resident' or 'resident-e4m3' on a GPU, found '%s'", variant);
    if (cuda->e4m3 && cuda->exact)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                         "CUDA: resident-e4m3: expected precision 'fast': rows are rounded to E4M3");
    cuda->base.variant = cuda->e4m3 ? "resident-e4m3" : "resident";
    cuda->base.decode = mimo_cuda_backend_decode;
    cuda->base.can_decode = mimo_cuda_backend_can_decode;
    return mimo_alloc_array(&cuda->resident, 1, sizeof *cuda->resident, "resident kernel", err);
}

static mimo_status open_parts(mimo_cuda *cuda, const mimo_config *config, const mimo_weights *weights,
                              const mimo_draft *draft, const mimo_backend_options *options, mimo_error *err)
{
    MIMO_TRY(choose_path(cuda, options->variant, err));
    MIMO_TRY(mimo_cuda_device_open(&cuda->device, options->device, options->image, cuda->resident != NULL, err));
    if (cuda->e4m3 && cuda->device.capability / 10 != 9)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                         "CUDA: resident-e4m3: expected a GPU of compute capability 9.0, which has wgmma, found %u.%u; "
                         "'resident' multiplies in BF16",
                         cuda->device.capability / 10, cuda->device.capability % 10);
    MIMO_TRY(open_models(cuda, config, weights, draft, err));
    MIMO_TRY(mimo_cuda_pool_open(&cuda->kv, &cuda->device, &cuda->memory, err));
    cuda->kv.ring[0] = cuda->target.model.state.kv.ring;
    cuda->kv.ring[1] = cuda->drafter.model.state.kv.ring;
    cuda->pieces = mimo_ceil_div(cuda->max_rows, MIMO_CUDA_ROWS);
    tell_memory(cuda);
    return mimo_pool_open(&cuda->pool, options->threads, options->pin, NULL, err);
}

mimo_status mimo_cuda_backend_open(mimo_backend **out, const mimo_config *config, const mimo_weights *weights,
                                   const mimo_draft *draft, const mimo_backend_options *options, mimo_error *err)
{
    mimo_cuda *cuda;
    MIMO_TRY(mimo_alloc_array(&cuda, 1, sizeof *cuda, "CUDA engine", err));
    cuda->base = (mimo_backend){
        .name = "cuda",
        .variant = "plain",
        .load = load,
        .check = check,
        .step = mimo_cuda_backend_step,
        .set_profile = set_profile,
        .read_profile = read_profile,
        .parallel = parallel,
        .kv_open = kv_open,
        .kv_reserve = kv_reserve,
        .kv_trim = kv_trim,
        .kv_copy = kv_copy,
        .kv_can_cut = kv_can_cut,
        .kv_close = kv_close,
        .close = cuda_close,
    };
    cuda->exact = options->exact;
    cuda->max_rows = options->max_rows;
    cuda->max_context = options->max_context;
    cuda->kept = options->kept;
    cuda->ranks = (uint32_t)mimo_max(1, options->ranks);
    const mimo_status status = open_parts(cuda, config, weights, draft, options, err);
    if (status != MIMO_OK) {
        cuda_close(&cuda->base);
        return status;
    }
    *out = &cuda->base;
    return MIMO_OK;
}
