#include "cuda/host.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "format/bf16.h"

enum { TILE = 128, ROW_UNIT = 16 };

typedef struct reader {
    mimo_cuda_host *host;
    const mimo_file *files;
    mimo_error *err;
} reader;

/* Zeroed, and freed with the host. */
static mimo_status take(mimo_cuda_host *host, void *out, size_t count, size_t size, mimo_error *err)
{
    return mimo_blocks_array(&host->blocks, out, count, size, "bodies on the host", err);
}

static mimo_status read_vector(const reader *r, const float **out, const mimo_vector *from)
{
    *out = NULL;
    if (from->length == 0)
        return MIMO_OK;
    float *to = NULL;
    uint16_t *codes = NULL;
    MIMO_TRY(take(r->host, &to, mimo_round_up(from->length, MIMO_CUDA_UNIT), sizeof *to, r->err));
    *out = to;
    if (from->dtype == MIMO_DTYPE_F32)
        return mimo_file_read(&r->files[from->file], to, from->data, from->length * sizeof *to, r->err);
    MIMO_TRY(take(r->host, &codes, from->length, sizeof *codes, r->err));
    MIMO_TRY(mimo_file_read(&r->files[from->file], codes, from->data, from->length * sizeof *codes, r->err));
    for (uint32_t i = 0; i < from->length; i++)
        to[i] = mimo_bf16_decode(codes[i]);
    return MIMO_OK;
}

/* FP8: rows of the scale grid that a segment's rows fall on, one after the other over all segments. */
static size_t grid_rows(const mimo_segment *s)
{
    return (s->scale_row + s->rows - 1) / TILE + 1 - s->scale_row / TILE;
}

static mimo_status read_fp8_scales(const reader *r, mimo_cuda_matrix *to, const mimo_matrix *from)
{
    size_t count = 0, row = 0, at = 0;
    for (uint32_t i = 0; i < from->segments; i++)
        count += grid_rows(&from->segment[i]);
    const size_t width = mimo_ceil_div(from->cols, TILE);
    float *scales = NULL;
    uint32_t *scale_row = NULL;
    MIMO_TRY(take(r->host, &scales, count * width, sizeof *scales, r->err));
    MIMO_TRY(take(r->host, &scale_row, from->rows, sizeof *scale_row, r->err));
    for (uint32_t i = 0; i < from->segments; i++) {
        const mimo_segment *s = &from->segment[i];
        const size_t first = s->scale_row / TILE, n = grid_rows(s);
        for (uint32_t j = 0; j < s->rows; j++)
            scale_row[row++] = (uint32_t)(at + (s->scale_row + j) / TILE - first);
        MIMO_TRY(mimo_file_read(&r->files[s->scale_file], scales + at * width,
                                s->scale + first * width * sizeof *scales, n * width * sizeof *scales, r->err));
        at += n;
    }
    to->scales = scales;
    to->scale_row = scale_row;
    return MIMO_OK;
}

static mimo_status read_matrix(const reader *r, mimo_cuda_matrix *to, const mimo_matrix *from)
{
    *to = (mimo_cuda_matrix){.rows = from->rows, .cols = from->cols, .format = from->format};
    if (from->rows == 0)
        return MIMO_OK;
    const size_t bytes = mimo_format_row_bytes(from->format, from->cols), mx = from->cols / 32;
    to->row_bytes = mimo_round_up(bytes, from->format == MIMO_FORMAT_F32 ? 2 * ROW_UNIT : ROW_UNIT);
    uint8_t *data = NULL, *scales = NULL;
    MIMO_TRY(take(r->host, &data, from->rows, to->row_bytes, r->err));
    if (from->format == MIMO_FORMAT_MXFP4)
        MIMO_TRY(take(r->host, &scales, from->rows, mx, r->err));
    to->data = data;
    to->scales = scales;
    size_t row = 0;
    for (uint32_t i = 0; i < from->segments; i++) {
        const mimo_segment *s = &from->segment[i];
        for (uint32_t j = 0; j < s->rows; j++)
            MIMO_TRY(mimo_file_read(&r->files[s->file], data + (row + j) * to->row_bytes, s->data + j * bytes, bytes,
                                    r->err));
        if (scales != NULL)
            MIMO_TRY(mimo_file_read(&r->files[s->scale_file], scales + row * mx, s->scale, s->rows * mx, r->err));
        row += s->rows;
    }
    return from->format == MIMO_FORMAT_FP8 ? read_fp8_scales(r, to, from) : MIMO_OK;
}

static mimo_status read_mlps(const reader *r, const mimo_cuda_matrix **out, const mimo_matrix *from, uint32_t count)
{
    mimo_cuda_matrix *to = NULL;
    MIMO_TRY(take(r->host, &to, count, sizeof *to, r->err));
    for (uint32_t i = 0; i < count; i++)
        MIMO_TRY(read_matrix(r, &to[i], &from[i]));
    *out = to;
    return MIMO_OK;
}

static mimo_status read_layer(const reader *r, mimo_cuda_layer *to, const mimo_layer_weights *from)
{
    MIMO_TRY(read_vector(r, &to->attention_norm, &from->attention_norm));
    MIMO_TRY(read_vector(r, &to->mlp_norm, &from->mlp_norm));
    MIMO_TRY(read_vector(r, &to->q_norm, &from->q_norm));
    MIMO_TRY(read_vector(r, &to->k_norm, &from->k_norm));
    MIMO_TRY(read_vector(r, &to->sinks, &from->sinks));
    MIMO_TRY(read_vector(r, &to->router_bias, &from->router_bias));
    MIMO_TRY(read_matrix(r, &to->qkv, &from->qkv));
    MIMO_TRY(read_matrix(r, &to->out, &from->out));
    MIMO_TRY(read_matrix(r, &to->router, &from->router));
    MIMO_TRY(read_mlps(r, &to->gate, from->gate, from->mlps));
    MIMO_TRY(read_mlps(r, &to->up, from->up, from->mlps));
    return read_mlps(r, &to->down, from->down, from->mlps);
}

static mimo_status read_layers(const reader *r, const mimo_weights *weights)
{
    mimo_cuda_state *s = &r->host->state;
    mimo_cuda_layer *layer = NULL;
    MIMO_TRY(take(r->host, &layer, s->config->layers, sizeof *layer, r->err));
    s->layer = layer;
    const size_t element = s->kv.is_float ? sizeof(float) : sizeof(uint16_t);
    for (uint32_t i = 0; i < s->config->layers; i++) {
        const mimo_attention *a = mimo_layer_attention(s->config, i);
        const uint32_t kind = s->config->sliding[i];
        s->kv.value_offset[kind] = MIMO_CUDA_CHUNK * a->head_dim * element;
        s->kv.head_bytes[kind] = MIMO_CUDA_CHUNK * (size_t)(a->head_dim + a->v_head_dim) * element;
        layer[i].attention = *a;
        layer[i].sliding = kind;
        layer[i].sparse = s->config->sparse[i];
        layer[i].kv_offset = s->kv.chunk_bytes[kind];
        s->kv.chunk_bytes[kind] += a->kv_heads * s->kv.head_bytes[kind];
        MIMO_TRY(read_layer(r, &layer[i], &weights->layer[i]));
    }
    return MIMO_OK;
}

static mimo_status read_draft(const reader *r, const mimo_weights *weights, const mimo_draft_config *draft,
                              const mimo_cuda_host *target)
{
    mimo_cuda_drafter *to = NULL;
    MIMO_TRY(take(r->host, &to, 1, sizeof *to, r->err));
    r->host->state.draft = to;
    r->host->state.embed = target->state.embed;
    memcpy(to->causal, draft->causal, sizeof to->causal);
    to->window_from_anchor = draft->window_from_anchor;
    MIMO_TRY(read_matrix(r, &to->fuse, &weights->fuse));
    MIMO_TRY(read_matrix(r, &to->markov_in, &weights->markov_in));
    MIMO_TRY(read_matrix(r, &to->markov_out, &weights->markov_out));
    MIMO_TRY(read_vector(r, &to->fuse_norm, &weights->fuse_norm));
    return read_vector(r, &to->mask, &weights->mask);
}

static mimo_status open_cache(mimo_cuda_host *host, mimo_error *err)
{
    mimo_cuda_state *s = &host->state;
    const size_t chunks = mimo_ceil_div(host->positions, MIMO_CUDA_CHUNK);
    uint8_t *full = NULL, **chunk = NULL;
    MIMO_TRY(take(host, &full, chunks, s->kv.chunk_bytes[MIMO_FULL], err));
    MIMO_TRY(take(host, &chunk, chunks, sizeof *chunk, err));
    for (size_t i = 0; i < chunks; i++)
        chunk[i] = full + i * s->kv.chunk_bytes[MIMO_FULL];
    const size_t reach = s->config->attention[MIMO_SLIDING].window + (size_t)MIMO_CUDA_ROWS + MIMO_MAX_BLOCK;
    s->kv.ring = (uint32_t)mimo_round_up(reach, MIMO_CUDA_CHUNK);
    host->cache.chunk = chunk;
    MIMO_TRY(take(host, &host->cache.ring, s->kv.ring / MIMO_CUDA_CHUNK, s->kv.chunk_bytes[MIMO_SLIDING], err));
    s->work.part_chunks = mimo_max(chunks, s->kv.ring / MIMO_CUDA_CHUNK + 1);
    return MIMO_OK;
}

static mimo_status open_angles(mimo_cuda_host *host, mimo_error *err)
{
    mimo_cuda_state *s = &host->state;
    for (uint32_t kind = 0; kind < 2; kind++) {
        const uint32_t half = s->config->attention[kind].rotary_dim / 2;
        float *frequency = NULL;
        MIMO_TRY(take(host, &s->work.cos[kind], MIMO_CUDA_ROWS * (size_t)half, sizeof(float), err));
        MIMO_TRY(take(host, &s->work.sin[kind], MIMO_CUDA_ROWS * (size_t)half, sizeof(float), err));
        MIMO_TRY(take(host, &frequency, half, sizeof(float), err));
        for (uint32_t j = 0; j < half; j++)
            frequency[j] = 1.0f / (float)pow(s->config->attention[kind].rope_theta, (float)(2 * j) / (float)(2 * half));
        s->frequency[kind] = frequency;
    }
    return MIMO_OK;
}

static mimo_status open_work(mimo_cuda_host *host, mimo_error *err)
{
    const mimo_config *c = host->state.config;
    mimo_cuda_work *w = &host->state.work;
    size_t q = 0, a = 0, part = 0;
    for (int kind = 0; kind < 2; kind++) {
        const mimo_attention *at = &c->attention[kind];
        q = mimo_max(q, (size_t)at->heads * at->head_dim);
        a = mimo_max(a, (size_t)at->heads * at->v_head_dim);
        part = mimo_max(part, at->heads * (at->v_head_dim + (size_t)4));
    }
    w->x_stride = mimo_round_up(c->hidden, MIMO_CUDA_UNIT);
    w->a_stride = mimo_round_up(a, MIMO_CUDA_UNIT);
    w->u_stride = mimo_round_up(mimo_max(c->expert_width, c->dense_width), MIMO_CUDA_UNIT);
    const size_t rows = MIMO_CUDA_ROWS, slots = rows * mimo_max(c->top_k, 1);
    MIMO_TRY(take(host, &w->x, rows * w->x_stride, sizeof(float), err));
    MIMO_TRY(take(host, &w->m, rows * w->x_stride, sizeof(float), err));
    MIMO_TRY(take(host, &w->q, rows * q, sizeof(float), err));
    MIMO_TRY(take(host, &w->a, rows * w->a_stride, sizeof(float), err));
    MIMO_TRY(take(host, &w->u, slots * w->u_stride, sizeof(float), err));
    MIMO_TRY(take(host, &w->router_logits, rows * c->experts, sizeof(float), err));
    MIMO_TRY(take(host, &w->part, rows * part * w->part_chunks, sizeof(float), err));
    MIMO_TRY(take(host, &w->moe, 1, sizeof *w->moe, err));
    return take(host, &host->scratch, mimo_cuda_scratch_floats(c, 1), sizeof(float), err);
}

static mimo_status open_parts(const reader *r, const mimo_weights *weights, const mimo_draft_config *draft,
                              const mimo_cuda_host *target)
{
    mimo_cuda_host *host = r->host;
    mimo_cuda_state *s = &host->state;
    mimo_plan_build(&host->plan, s->config, MIMO_CUDA_ROWS);
    MIMO_TRY(mimo_plan_check(&host->plan, s->config, r->err));
    if (draft != NULL)
        MIMO_TRY(read_draft(r, weights, draft, target));
    else
        MIMO_TRY(read_matrix(r, &s->embed, &weights->embed));
    MIMO_TRY(read_matrix(r, &s->head, &weights->head));
    MIMO_TRY(read_vector(r, &s->norm, &weights->norm));
    MIMO_TRY(read_layers(r, weights));
    MIMO_TRY(open_cache(host, r->err));
    MIMO_TRY(open_angles(host, r->err));
    return open_work(host, r->err);
}

mimo_status mimo_cuda_host_open(mimo_cuda_host **out, const mimo_config *config, const mimo_weights *weights,
                                const mimo_draft_config *draft, const mimo_cuda_host *target, const mimo_file *files,
                                const mimo_cuda_host_options *options, mimo_error *err)
{
    mimo_cuda_host *host = NULL;
    *out = NULL;
    MIMO_TRY(mimo_alloc_array(&host, 1, sizeof *host, "bodies on the host", err));
    host->state.config = config;
    host->state.kv.is_float = options->exact;
    host->state.step = &host->step;
    host->positions = options->positions;
    const reader r = {host, files, err};
    const mimo_status status = open_parts(&r, weights, draft, target);
    if (status != MIMO_OK) {
        mimo_cuda_host_close(host);
        return status;
    }
    *out = host;
    return MIMO_OK;
}

void mimo_cuda_host_close(mimo_cuda_host *host)
{
    if (host == NULL)
        return;
    mimo_blocks_free(&host->blocks);
    mimo_free(host);
}
