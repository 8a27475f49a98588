/* What kernels read beside matrices: descriptions, norms, sinks, frequencies; and what of a drafter the host keeps. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"
#include "format/bf16.h"

/* Where the host has what lies at an address of the tables. */
static void *mirror(const mimo_cuda *cuda, uint64_t address)
{
    return cuda->host_tables + (address - cuda->tables);
}

/* count elements of F32 or BF16 at `data`, as float. Not finite: MIMO_ERR_FORMAT with the tensor's name. */
static mimo_status read_floats(float *out, const char *name, mimo_dtype dtype, const mimo_file *file, uint64_t data,
                               size_t count, mimo_error *err)
{
    const size_t bytes = dtype == MIMO_DTYPE_BF16 ? sizeof(uint16_t) : sizeof(float);
    /* BF16 is read into the second half and widened from the front: no element is overwritten before it is read. */
    uint8_t *raw = (uint8_t *)out + count * (sizeof(float) - bytes);
    MIMO_TRY(mimo_file_read(file, raw, data, count * bytes, err));
    for (size_t i = 0; i < count; i++) {
        if (dtype == MIMO_DTYPE_BF16) {
            uint16_t code;
            memcpy(&code, raw + i * sizeof code, sizeof code);
            out[i] = mimo_bf16_decode(code);
        }
        if (!isfinite(out[i]))
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: element %zu: expected a finite value, found %g", name, i,
                             (double)out[i]);
    }
    return MIMO_OK;
}

typedef struct reader {
    mimo_cuda *cuda;
    const mimo_file *files;
    mimo_status status;
    mimo_error *err;
} reader;

static void read_vector(void *context, const mimo_vector *from, const float *to, size_t room)
{
    (void)room; /* the tables are zeros already */
    reader *r = context;
    float *out = mirror(r->cuda, (uint64_t)(uintptr_t)to);
    for (uint32_t i = 0; r->files == NULL && i < from->length; i++)
        out[i] = 1.0f;
    if (r->status == MIMO_OK && r->files != NULL)
        r->status = read_floats(out, from->name, from->dtype, &r->files[from->file], from->data, from->length, r->err);
}

/* theta^(-2j/R) in float, as the reference computes it. */
static void fill_frequencies(const mimo_cuda *cuda, const mimo_cuda_model *model)
{
    for (int kind = 0; kind < 2; kind++) {
        if (model->state.frequency[kind] == NULL)
            continue;
        const mimo_attention *a = &model->config->attention[kind];
        float *to = mirror(cuda, (uint64_t)(uintptr_t)model->state.frequency[kind]);
        for (uint32_t j = 0; j < a->rotary_dim / 2; j++)
            to[j] = 1.0f / (float)pow(a->rope_theta, (float)(2 * j) / (float)a->rotary_dim);
    }
}

static mimo_status fill_model(mimo_cuda *cuda, const mimo_cuda_model *model, const mimo_file *files, mimo_error *err)
{
    const mimo_cuda_spots *spots = &model->spots;
    memcpy(mirror(cuda, spots->config), model->config, sizeof *model->config);
    memcpy(mirror(cuda, spots->layers), model->layer, model->config->layers * sizeof *model->layer);
    memcpy(mirror(cuda, spots->mlps), model->mlp, 3 * model->mlps * sizeof *model->mlp);
    if (model->draft != NULL)
        memcpy(mirror(cuda, spots->drafter), &model->drafter, sizeof model->drafter);
    fill_frequencies(cuda, model);
    reader r = {.cuda = cuda, .files = files, .err = err};
    mimo_cuda_visit_vectors(model, read_vector, &r);
    return r.status;
}

mimo_status mimo_cuda_fill_tables(mimo_cuda *cuda, const mimo_file *files, mimo_error *err)
{
    MIMO_TRY(fill_model(cuda, &cuda->target.model, files, err));
    return cuda->drafter.model.config != NULL ? fill_model(cuda, &cuda->drafter.model, files, err) : MIMO_OK;
}

static mimo_status load_table(float **out, const mimo_matrix *from, const mimo_file *files, mimo_error *err)
{
    MIMO_TRY(mimo_alloc_array(out, (size_t)from->rows * from->cols, sizeof(float), "the drafter's Markov head", err));
    float *to = *out;
    for (uint32_t i = 0; i < from->segments; i++) {
        const mimo_segment *s = &from->segment[i];
        const size_t count = (size_t)s->rows * from->cols;
        const mimo_dtype dtype = from->format == MIMO_FORMAT_BF16 ? MIMO_DTYPE_BF16 : MIMO_DTYPE_F32;
        MIMO_TRY(read_floats(to, from->name, dtype, &files[s->file], s->data, count, err));
        to += count;
    }
    return MIMO_OK;
}

mimo_status mimo_cuda_load_markov(mimo_cuda *cuda, const mimo_file *files, mimo_error *err)
{
    const mimo_cuda_model *model = &cuda->drafter.model;
    if (model->config == NULL || model->config->markov_rank == 0)
        return MIMO_OK;
    MIMO_TRY(load_table(&cuda->markov_in, &model->weights->markov_in, files, err));
    return load_table(&cuda->markov_out, &model->weights->markov_out, files, err);
}
