/* Where every part of a model lies on the device: the same walk gives sizes (from address 0 on) and addresses. */
#include <stdint.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/memory.h"

enum { ALIGNMENT = 256, VECTOR_UNIT = 16 };

uint64_t mimo_carve(mimo_carver *carver, uint64_t count, uint64_t size)
{
    const uint64_t at = carver->base + carver->used;
    size_t bytes = 0, used = carver->used;
    carver->overflow |= !mimo_size_mul(count, size, &bytes) || !mimo_size_add(used, bytes, &used) ||
                        !mimo_size_add(used, ALIGNMENT, &bytes);
    if (!carver->overflow)
        carver->used = mimo_round_up(used, ALIGNMENT);
    return at;
}

static void *address(uint64_t at)
{
    return (void *)(uintptr_t)at;
}

/* ---- the model's descriptions ---- */

mimo_status mimo_cuda_model_open(mimo_cuda_model *model, const mimo_config *config, const mimo_weights *weights,
                                 const mimo_draft_config *draft, mimo_error *err)
{
    *model = (mimo_cuda_model){.config = config, .weights = weights, .draft = draft};
    for (uint32_t i = 0; i < config->layers; i++)
        model->mlps += weights->layer[i].mlps;
    MIMO_TRY(mimo_alloc_array(&model->layer, config->layers, sizeof *model->layer, "layers of the GPU", err));
    return mimo_alloc_array(&model->mlp, 3 * model->mlps, sizeof *model->mlp, "MLP matrices of the GPU", err);
}

void mimo_cuda_model_close(mimo_cuda_model *model)
{
    mimo_free(model->layer);
    mimo_free(model->mlp);
    *model = (mimo_cuda_model){0};
}

/* ---- weights ---- */

/* Rows of the scale grid that a segment needs. */
static uint64_t grid_rows(const mimo_segment *s)
{
    return s->rows > 0 ? (s->scale_row + s->rows - 1) / 128 - s->scale_row / 128 + 1 : 0;
}

static mimo_cuda_matrix place_matrix(mimo_cuda_places *p, const mimo_matrix *from, bool paged)
{
    mimo_cuda_matrix to = {.rows = from->rows, .cols = from->cols, .format = from->format};
    const size_t whole = mimo_round_up(from->cols, MIMO_CUDA_UNIT);
    to.row_bytes = mimo_round_up(mimo_format_row_bytes(from->format, (uint32_t)whole), 16);
    if (paged)
        return to;
    to.data = address(mimo_carve(&p->weights, from->rows, to.row_bytes));
    if (from->format == MIMO_FORMAT_FP8) {
        uint64_t rows = 0;
        for (uint32_t i = 0; i < from->segments; i++)
            rows += grid_rows(&from->segment[i]);
        to.scales = address(mimo_carve(&p->weights, rows, mimo_ceil_div(from->cols, 128) * sizeof(float)));
        to.scale_row = address(mimo_carve(&p->weights, from->rows, sizeof(uint32_t)));
    } else if (from->format == MIMO_FORMAT_MXFP4) {
        to.scales = address(mimo_carve(&p->weights, from->rows, from->cols / 32));
    }
    return to;
}

static const float *place_vector(mimo_cuda_places *p, const mimo_vector *from)
{
    if (from->length == 0)
        return NULL;
    return address(mimo_carve(&p->tables, mimo_round_up(from->length, VECTOR_UNIT), sizeof(float)));
}

static void place_layer(mimo_cuda_model *model, mimo_cuda_places *p, uint32_t i, mimo_cuda_matrix *mlp)
{
    const mimo_layer_weights *w = &model->weights->layer[i];
    mimo_cuda_layer *layer = &model->layer[i];
    *layer = (mimo_cuda_layer){.attention = *mimo_layer_attention(model->config, i),
                               .sliding = model->config->sliding[i],
                               .sparse = model->config->sparse[i]};
    layer->attention_norm = place_vector(p, &w->attention_norm);
    layer->mlp_norm = place_vector(p, &w->mlp_norm);
    layer->q_norm = place_vector(p, &w->q_norm);
    layer->k_norm = place_vector(p, &w->k_norm);
    layer->sinks = place_vector(p, &w->sinks);
    layer->router_bias = place_vector(p, &w->router_bias);
    layer->qkv = place_matrix(p, &w->qkv, model->paged);
    layer->out = place_matrix(p, &w->out, model->paged);
    if (layer->sparse)
        layer->router = place_matrix(p, &w->router, model->paged);
    const uint64_t first = model->spots.mlps + (uint64_t)(mlp - model->mlp) * sizeof *mlp;
    const uint64_t bytes = w->mlps * sizeof *mlp;
    layer->gate = address(first);
    layer->up = address(first + bytes);
    layer->down = address(first + 2 * bytes);
    for (uint32_t e = 0; e < w->mlps; e++) {
        mlp[e] = place_matrix(p, &w->gate[e], model->paged);
        mlp[w->mlps + e] = place_matrix(p, &w->up[e], model->paged);
        mlp[2 * w->mlps + e] = place_matrix(p, &w->down[e], model->paged);
    }
    mimo_cuda_kv_layout *kv = &model->state.kv;
    layer->kv_offset = kv->chunk_bytes[layer->sliding];
    kv->chunk_bytes[layer->sliding] += layer->attention.kv_heads * kv->head_bytes[layer->sliding];
}

/* A tied head is the embedding table; a drafter's head is the target's unless it drafts some ids only. */
static bool has_own_head(const mimo_cuda_model *model)
{
    return model->draft != NULL ? model->draft->target_id != NULL : !model->config->tied_head;
}

static void place_ends(mimo_cuda_model *model, const mimo_cuda_model *target, mimo_cuda_places *p)
{
    const mimo_weights *w = model->weights;
    mimo_cuda_state *s = &model->state;
    s->norm = place_vector(p, &w->norm);
    if (model->draft != NULL) {
        model->drafter = (mimo_cuda_drafter){.fuse = place_matrix(p, &w->fuse, model->paged),
                                             .fuse_norm = place_vector(p, &w->fuse_norm),
                                             .mask = place_vector(p, &w->mask),
                                             .markov_in = place_matrix(p, &w->markov_in, false),
                                             .markov_out = place_matrix(p, &w->markov_out, false),
                                             .causal = {model->draft->causal[0], model->draft->causal[1]},
                                             .window_from_anchor = model->draft->window_from_anchor};
        s->embed = target->state.embed;
    } else {
        const uint64_t before = p->weights.used;
        s->embed = place_matrix(p, &w->embed, false);
        p->embedding += p->weights.used - before;
    }
    if (has_own_head(model))
        s->head = place_matrix(p, &w->head, model->paged);
    else
        s->head = model->draft != NULL ? target->state.head : s->embed;
}

static void place_kv(mimo_cuda_model *model, bool exact)
{
    const mimo_config *c = model->config;
    mimo_cuda_kv_layout *kv = &model->state.kv;
    *kv = (mimo_cuda_kv_layout){.is_float = exact};
    const size_t element = exact ? sizeof(float) : sizeof(uint16_t);
    for (int kind = MIMO_FULL; kind <= MIMO_SLIDING; kind++) {
        const mimo_attention *a = &c->attention[kind];
        kv->value_offset[kind] = (size_t)MIMO_CUDA_CHUNK * a->head_dim * element;
        kv->head_bytes[kind] = (size_t)MIMO_CUDA_CHUNK * ((size_t)a->head_dim + a->v_head_dim) * element;
    }
    /* A step writes its rows before it reads: its first row must still find the window behind it, and a block the
     * window behind its anchor. */
    for (uint32_t i = 0; i < c->layers; i++)
        if (c->sliding[i])
            kv->ring =
                (uint32_t)mimo_round_up((size_t)c->attention[MIMO_SLIDING].window + MIMO_CUDA_ROWS, MIMO_CUDA_CHUNK);
}

/* ---- rows of a step ---- */

typedef struct row_sizes {
    size_t q, a, u, u_rows, heads, v_dim, half[2];
} row_sizes;

static row_sizes measure(const mimo_config *c)
{
    row_sizes s = {0};
    for (uint32_t i = 0; i < c->layers; i++) {
        const mimo_attention *a = mimo_layer_attention(c, i);
        s.q = mimo_max(s.q, (size_t)a->heads * a->head_dim);
        s.a = mimo_max(s.a, (size_t)a->heads * a->v_head_dim);
        s.u = mimo_max(s.u, c->sparse[i] ? c->expert_width : c->dense_width);
        s.u_rows = mimo_max(s.u_rows, c->sparse[i] ? c->top_k : 1);
        s.heads = mimo_max(s.heads, a->heads);
        s.v_dim = mimo_max(s.v_dim, a->v_head_dim);
        s.half[c->sliding[i]] = a->rotary_dim / 2;
    }
    return s;
}

static void place_work(mimo_cuda_model *model, mimo_cuda_places *p, uint32_t max_context)
{
    const mimo_config *c = model->config;
    mimo_cuda_work *w = &model->state.work;
    const row_sizes size = measure(c);
    const size_t T = MIMO_CUDA_ROWS;
    *w = (mimo_cuda_work){.x_stride = mimo_round_up(c->hidden, MIMO_CUDA_UNIT),
                          .a_stride = mimo_round_up(size.a, MIMO_CUDA_UNIT),
                          .u_stride = mimo_round_up(size.u, MIMO_CUDA_UNIT),
                          /* one more where the keys begin within a chunk, one for a block beyond the context */
                          .part_chunks = max_context / MIMO_CUDA_CHUNK + 3};
    w->x = address(mimo_carve(&p->work, T * w->x_stride, sizeof(float)));
    w->m = address(mimo_carve(&p->work, T * w->x_stride, sizeof(float)));
    for (int kind = 0; kind < 2; kind++) {
        if (size.half[kind] == 0)
            continue;
        w->cos[kind] = address(mimo_carve(&p->work, T * size.half[kind], sizeof(float)));
        w->sin[kind] = address(mimo_carve(&p->work, T * size.half[kind], sizeof(float)));
        model->state.frequency[kind] = address(mimo_carve(&p->tables, size.half[kind], sizeof(float)));
    }
    w->q = address(mimo_carve(&p->work, T * size.q, sizeof(float)));
    w->a = address(mimo_carve(&p->work, T * w->a_stride, sizeof(float)));
    w->u = address(mimo_carve(&p->work, T * size.u_rows * w->u_stride, sizeof(float)));
    w->router_logits = address(mimo_carve(&p->work, T * c->experts, sizeof(float)));
    w->moe = address(mimo_carve(&p->work, 1, sizeof(mimo_moe)));
    w->part = address(mimo_carve(&p->work, T * size.heads * w->part_chunks, (size.v_dim + 4) * sizeof(float)));
    mimo_cuda_spots *spots = &model->spots;
    spots->logits_stride = mimo_round_up(c->vocab, MIMO_CUDA_UNIT);
    spots->step = mimo_carve(&p->work, 1, sizeof(mimo_cuda_step));
    spots->logits = mimo_carve(&p->work, T * spots->logits_stride, sizeof(float));
    if (model->draft != NULL)
        spots->features = mimo_carve(&p->work, T * c->taps * c->hidden, sizeof(float));
    else
        spots->hidden = mimo_carve(&p->work, T * MIMO_MAX_TAPS * c->hidden, sizeof(float));
}

void mimo_cuda_place(mimo_cuda_model *model, const mimo_cuda_model *target, mimo_cuda_places *p, bool exact,
                     uint32_t max_context)
{
    const mimo_config *c = model->config;
    model->state = (mimo_cuda_state){0};
    model->spots = (mimo_cuda_spots){0};
    model->spots.config = mimo_carve(&p->tables, 1, sizeof *c);
    model->spots.layers = mimo_carve(&p->tables, c->layers, sizeof *model->layer);
    model->spots.mlps = mimo_carve(&p->tables, 3 * model->mlps, sizeof *model->mlp);
    if (model->draft != NULL)
        model->spots.drafter = mimo_carve(&p->tables, 1, sizeof model->drafter);
    place_kv(model, exact);
    mimo_cuda_matrix *mlp = model->mlp;
    for (uint32_t i = 0; i < c->layers; mlp += 3 * (size_t)model->weights->layer[i++].mlps)
        place_layer(model, p, i, mlp);
    place_ends(model, target, p);
    place_work(model, p, max_context);
    model->state.config = address(model->spots.config);
    model->state.layer = address(model->spots.layers);
    model->state.draft = address(model->spots.drafter);
    model->state.step = address(model->spots.step);
}

/* ---- what is to be read from the files ---- */

void mimo_cuda_visit_matrices(const mimo_cuda_model *model, mimo_cuda_visit *fn, void *context)
{
    const mimo_weights *w = model->weights;
    if (model->draft != NULL) {
        fn(context, &w->fuse, &model->drafter.fuse);
        fn(context, &w->markov_in, &model->drafter.markov_in);
        fn(context, &w->markov_out, &model->drafter.markov_out);
    } else {
        fn(context, &w->embed, &model->state.embed);
    }
    const mimo_cuda_matrix *mlp = model->mlp;
    for (uint32_t i = 0; i < model->config->layers; i++) {
        const mimo_layer_weights *from = &w->layer[i];
        fn(context, &from->qkv, &model->layer[i].qkv);
        fn(context, &from->out, &model->layer[i].out);
        if (model->layer[i].sparse)
            fn(context, &from->router, &model->layer[i].router);
        for (uint32_t e = 0; e < from->mlps; e++) {
            fn(context, &from->gate[e], &mlp[e]);
            fn(context, &from->up[e], &mlp[from->mlps + e]);
            fn(context, &from->down[e], &mlp[2 * from->mlps + e]);
        }
        mlp += 3 * (size_t)from->mlps;
    }
    if (has_own_head(model))
        fn(context, &w->head, &model->state.head);
}

void mimo_cuda_visit_vectors(const mimo_cuda_model *model, mimo_cuda_visit_vector *fn, void *context)
{
    for (uint32_t i = 0; i <= model->config->layers; i++) {
        const mimo_layer_weights *w = &model->weights->layer[i];
        const mimo_cuda_layer *layer = &model->layer[i];
        const bool ends = i == model->config->layers;
        const struct {
            const mimo_vector *from;
            const float *to;
        } own[] = {
            {ends ? &model->weights->norm : &w->attention_norm, ends ? model->state.norm : layer->attention_norm},
            {ends ? &model->weights->fuse_norm : &w->mlp_norm, ends ? model->drafter.fuse_norm : layer->mlp_norm},
            {ends ? &model->weights->mask : &w->q_norm, ends ? model->drafter.mask : layer->q_norm},
            {ends ? NULL : &w->k_norm, ends ? NULL : layer->k_norm},
            {ends ? NULL : &w->sinks, ends ? NULL : layer->sinks},
            {ends ? NULL : &w->router_bias, ends ? NULL : layer->router_bias}};
        for (size_t n = 0; n < sizeof own / sizeof *own; n++)
            if (own[n].to != NULL)
                fn(context, own[n].from, own[n].to, mimo_round_up(own[n].from->length, VECTOR_UNIT));
    }
}
