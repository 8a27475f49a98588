#include "model/weights.h"

#include <stdbool.h>
#include <stdio.h>

#include "base/alloc.h"
#include "base/size.h"
#include "model/index.h"

enum { TILE = 128, MX_BLOCK = 32, NAME_BYTES = 160, SHAPE_BYTES = 96 };
enum { ARENA_LAYERS, ARENA_MATRICES, ARENA_SEGMENTS };

typedef enum role {
#define TENSOR(role, scope, name, rows, cols, formats, when) ROLE_##role,
#include "model/weights.def"
#undef TENSOR
    ROLE_COUNT
} role;

typedef enum reach { MODEL, LAYER, EXPERT } reach;
typedef enum formats { PLAIN, ANY } formats;

static const struct {
    reach scope;
    const char *name;
    formats formats;
} role_table[] = {
#define TENSOR(role, scope, name, rows, cols, formats, when) [ROLE_##role] = {scope, name, formats},
#include "model/weights.def"
#undef TENSOR
};

typedef struct shape {
    uint32_t rows, cols; /* cols 0: a vector */
    bool wanted;
} shape;

typedef struct binder {
    const mimo_config *config;
    mimo_index index;
    mimo_weights *out;
    mimo_layer_weights *layer; /* [L] */
    mimo_matrix *mlp;          /* gate, up and down of the layer being bound */
    mimo_matrix *matrix;       /* next free */
    mimo_segment *segment;     /* next free */
    mimo_error *err;
} binder;

/* One tensor the model needs: where in the walk, its name and its shape. */
typedef struct slot {
    role role;
    uint32_t layer, expert;
    shape shape;
    char name[NAME_BYTES];
} slot;

typedef mimo_status visitor(binder *b, const slot *s);

/* A matrix as stored, before its rows are put in logical order. */
typedef struct stored {
    const mimo_tensor *data, *scale;
    mimo_format format;
    uint32_t rows, cols;
    uint32_t grid; /* FP8: the scale grid restarts every so many rows */
} stored;

static uint32_t tiles(uint32_t n)
{
    return (uint32_t)mimo_ceil_div(n, TILE);
}

size_t mimo_format_row_bytes(mimo_format format, uint32_t cols)
{
    static const unsigned bits[MIMO_FORMAT_COUNT] = {32, 16, 8, 4};
    return (size_t)cols * bits[format] / 8;
}

const char *mimo_format_name(mimo_format format)
{
    static const char *const names[MIMO_FORMAT_COUNT] = {"f32", "bf16", "fp8", "mxfp4"};
    return names[format];
}

/* The dimension letters of weights.def get their meaning here. */
static void layer_shapes(shape out[ROLE_COUNT], const mimo_config *config, uint32_t layer)
{
    const mimo_attention *a = mimo_layer_attention(config, layer);
    const bool tied = config->tied_head, fused = config->qkv_chunks > 0, sparse = config->sparse[layer],
               sinks = a->sinks, draft = config->taps > 0, markov = config->markov_rank > 0, qk_norm = config->qk_norm;
    const uint32_t H = config->hidden, V = config->vocab, E = config->experts, M = config->taps,
                   R = config->markov_rank;
    const uint32_t N = a->heads, G = a->kv_heads, D = a->head_dim, Dv = a->v_head_dim;
    const uint32_t F = sparse ? config->expert_width : config->dense_width;
    const shape shapes[] = {
#define TENSOR(role, scope, name, rows, cols, formats, when) [ROLE_##role] = {rows, cols, when},
#include "model/weights.def"
#undef TENSOR
    };
    for (int i = 0; i < ROLE_COUNT; i++)
        out[i] = shapes[i];
}

static mimo_status visit_slot(binder *b, visitor *visit, slot *s)
{
    const char *name = role_table[s->role].name;
    switch (role_table[s->role].scope) {
    case MODEL:
        snprintf(s->name, sizeof s->name, "%s", name);
        break;
    case LAYER:
        snprintf(s->name, sizeof s->name, "model.layers.%u.%s", s->layer, name);
        break;
    case EXPERT:
        snprintf(s->name, sizeof s->name, "model.layers.%u.mlp.experts.%u.%s", s->layer, s->expert, name);
        break;
    }
    return visit(b, s);
}

/* All wanted tensors of one scope. Within a scope they come in the order of weights.def, which puts q before k before
 * v. */
static mimo_status walk_scope(binder *b, visitor *visit, reach scope, uint32_t layer, uint32_t expert,
                              const shape *shapes)
{
    for (int i = 0; i < ROLE_COUNT; i++) {
        if (role_table[i].scope != scope || !shapes[i].wanted)
            continue;
        slot s = {.role = (role)i, .layer = layer, .expert = expert, .shape = shapes[i]};
        MIMO_TRY(visit_slot(b, visit, &s));
    }
    return MIMO_OK;
}

static mimo_status walk(binder *b, visitor *visit)
{
    shape shapes[ROLE_COUNT];
    layer_shapes(shapes, b->config, 0);
    MIMO_TRY(walk_scope(b, visit, MODEL, 0, 0, shapes));
    for (uint32_t layer = 0; layer < b->config->layers; layer++) {
        layer_shapes(shapes, b->config, layer);
        MIMO_TRY(walk_scope(b, visit, LAYER, layer, 0, shapes));
        for (uint32_t expert = 0; b->config->sparse[layer] && expert < b->config->experts; expert++)
            MIMO_TRY(walk_scope(b, visit, EXPERT, layer, expert, shapes));
    }
    return MIMO_OK;
}

static const char *shape_text(char out[SHAPE_BYTES], const uint64_t *dims, uint32_t rank)
{
    size_t n = (size_t)snprintf(out, SHAPE_BYTES, "[");
    for (uint32_t i = 0; i < rank; i++)
        n += (size_t)snprintf(out + n, SHAPE_BYTES - n, i == 0 ? "%llu" : ", %llu", (unsigned long long)dims[i]);
    snprintf(out + n, SHAPE_BYTES - n, "]");
    return out;
}

static mimo_status check_shape(const binder *b, const mimo_tensor *t, uint64_t rows, uint64_t cols, uint32_t rank)
{
    if (t->rank == rank && t->shape[0] == rows && (rank == 1 || t->shape[1] == cols))
        return MIMO_OK;
    char expected[SHAPE_BYTES], found[SHAPE_BYTES];
    const uint64_t dims[2] = {rows, cols};
    return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected shape %s, found %s", t->name,
                     shape_text(expected, dims, rank), shape_text(found, t->shape, t->rank));
}

static mimo_status wrong_dtype(const binder *b, const mimo_tensor *t, const char *expected)
{
    return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected dtype %s, found %s", t->name, expected, t->dtype_name);
}

/* First walk. A config may ask for far more tensors than the list has: this ends at the first one that is not there,
 * before anything is allocated by the config's numbers. */
static mimo_status require(binder *b, const slot *s)
{
    if (mimo_index_find(&b->index, s->name) != NULL)
        return MIMO_OK;
    char expected[SHAPE_BYTES];
    const uint64_t dims[2] = {s->shape.rows, s->shape.cols};
    return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected a tensor of %s elements, found none", s->name,
                     shape_text(expected, dims, s->shape.cols == 0 ? 1 : 2));
}

/* Rows after which the FP8 scale grid of a role may (split) or does (fused) restart. */
static uint32_t grid_unit(const mimo_config *config, const slot *s)
{
    const mimo_attention *a = mimo_layer_attention(config, s->layer);
    switch (s->role) {
    case ROLE_Q:
    case ROLE_K:
        return a->head_dim;
    case ROLE_V:
        return a->v_head_dim;
    case ROLE_QKV:
        return s->shape.rows / config->qkv_chunks;
    default:
        return s->shape.rows;
    }
}

static mimo_status take_scale(binder *b, const slot *s, const char *suffix, mimo_dtype dtype, stored *m)
{
    char name[NAME_BYTES + 16];
    snprintf(name, sizeof name, "%s%s", s->name, suffix);
    m->scale = mimo_index_take(&b->index, name);
    if (m->scale == NULL)
        return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected the scales of %s (%s), found none", name, s->name,
                         m->data->dtype_name);
    return m->scale->dtype == dtype ? MIMO_OK : wrong_dtype(b, m->scale, dtype == MIMO_DTYPE_U8 ? "U8" : "F32");
}

static mimo_status take_fp8_scale(binder *b, const slot *s, stored *m)
{
    MIMO_TRY(take_scale(b, s, "_scale_inv", MIMO_DTYPE_F32, m));
    const uint32_t unit = grid_unit(b->config, s), plain = tiles(m->rows), restarting = m->rows / unit * tiles(unit);
    const bool found_plain = m->scale->rank == 2 && m->scale->shape[0] == plain;
    m->grid = s->role == ROLE_QKV || !found_plain ? unit : m->rows;
    if (s->role == ROLE_QKV || plain == restarting)
        return check_shape(b, m->scale, restarting, tiles(m->cols), 2);
    if (found_plain || (m->scale->rank == 2 && m->scale->shape[0] == restarting))
        return check_shape(b, m->scale, m->scale->shape[0], tiles(m->cols), 2);
    char found[SHAPE_BYTES];
    return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected shape [%u, %u], or [%u, %u] with a grid per head, found %s",
                     m->scale->name, plain, tiles(m->cols), restarting, tiles(m->cols),
                     shape_text(found, m->scale->shape, m->scale->rank));
}

static mimo_status take_matrix(binder *b, const slot *s, stored *m)
{
    *m = (stored){.data = mimo_index_take(&b->index, s->name), .rows = s->shape.rows, .cols = s->shape.cols};
    const mimo_dtype dtype = m->data->dtype;
    const bool any = role_table[s->role].formats == ANY;
    m->grid = m->rows;
    if (dtype == MIMO_DTYPE_F32 || dtype == MIMO_DTYPE_BF16) {
        m->format = dtype == MIMO_DTYPE_F32 ? MIMO_FORMAT_F32 : MIMO_FORMAT_BF16;
        return check_shape(b, m->data, m->rows, m->cols, 2);
    }
    if (any && dtype == MIMO_DTYPE_F8_E4M3) {
        m->format = MIMO_FORMAT_FP8;
        MIMO_TRY(check_shape(b, m->data, m->rows, m->cols, 2));
        return take_fp8_scale(b, s, m);
    }
    if (any && dtype == MIMO_DTYPE_U8) {
        m->format = MIMO_FORMAT_MXFP4;
        if (m->cols % MX_BLOCK != 0)
            return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected columns in multiples of %d for MXFP4, found %u",
                             s->name, MX_BLOCK, m->cols);
        MIMO_TRY(check_shape(b, m->data, m->rows, m->cols / 2, 2));
        MIMO_TRY(take_scale(b, s, "_scale", MIMO_DTYPE_U8, m));
        return check_shape(b, m->scale, m->rows, m->cols / MX_BLOCK, 2);
    }
    return wrong_dtype(b, m->data, any ? "F32, BF16, F8_E4M3 or U8 (MXFP4)" : "F32 or BF16");
}

/* Stored rows [first, first + rows) become the next rows of `to`, cut where the scale grid restarts. */
static void append_rows(binder *b, mimo_matrix *to, const stored *m, uint32_t first, uint32_t rows)
{
    to->rows += rows;
    while (rows > 0) {
        const uint32_t in_grid = first % m->grid;
        const uint32_t n = m->format == MIMO_FORMAT_FP8 ? (uint32_t)mimo_min(rows, m->grid - in_grid) : rows;
        mimo_segment *segment = b->segment++;
        *segment = (mimo_segment){.rows = n, .file = m->data->file};
        segment->data = m->data->begin + first * mimo_format_row_bytes(m->format, m->cols);
        if (m->scale != NULL)
            segment->scale_file = m->scale->file;
        if (m->format == MIMO_FORMAT_FP8) {
            const uint64_t grid_rows = (uint64_t)(first / m->grid) * tiles(m->grid);
            segment->scale = m->scale->begin + grid_rows * tiles(m->cols) * sizeof(float);
            segment->scale_row = in_grid;
        } else if (m->format == MIMO_FORMAT_MXFP4) {
            segment->scale = m->scale->begin + (uint64_t)first * (m->cols / MX_BLOCK);
        }
        to->segments++;
        first += n;
        rows -= n;
    }
}

/* Chunk after chunk of [Q | K | V] becomes all of Q, all of K, all of V. */
static void append_fused(binder *b, mimo_matrix *to, const stored *m, const mimo_attention *a)
{
    const uint32_t chunks = b->config->qkv_chunks, chunk_rows = m->rows / chunks;
    const uint32_t heads = a->heads / chunks, kv_heads = a->kv_heads / chunks;
    const uint32_t part_rows[3] = {heads * a->head_dim, kv_heads * a->head_dim, kv_heads * a->v_head_dim};
    uint32_t first = 0;
    for (int part = 0; part < 3; part++) {
        for (uint32_t chunk = 0; chunk < chunks; chunk++)
            append_rows(b, to, m, chunk * chunk_rows + first, part_rows[part]);
        first += part_rows[part];
    }
}

static mimo_status bind_matrix(binder *b, const slot *s, mimo_matrix *to)
{
    stored m;
    MIMO_TRY(take_matrix(b, s, &m));
    if (to->segments > 0 && to->format != m.format)
        return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected format %s as in %s, found %s", s->name,
                         mimo_format_name(to->format), to->name, mimo_format_name(m.format));
    if (to->segments == 0)
        *to = (mimo_matrix){.name = m.data->name, .format = m.format, .cols = m.cols, .segment = b->segment};
    if (s->role == ROLE_QKV)
        append_fused(b, to, &m, mimo_layer_attention(b->config, s->layer));
    else
        append_rows(b, to, &m, 0, m.rows);
    return MIMO_OK;
}

static mimo_status bind_vector(binder *b, const slot *s, mimo_vector *to)
{
    const mimo_tensor *t = mimo_index_take(&b->index, s->name);
    if (t->dtype != MIMO_DTYPE_F32 && t->dtype != MIMO_DTYPE_BF16)
        return wrong_dtype(b, t, "F32 or BF16");
    MIMO_TRY(check_shape(b, t, s->shape.rows, 0, 1));
    *to = (mimo_vector){.name = t->name, .dtype = t->dtype, .length = s->shape.rows, .file = t->file, .data = t->begin};
    return MIMO_OK;
}

/* Gate, up and down of all experts of a layer (or of its one MLP) lie one after the other. */
static mimo_status bind_mlp(binder *b, const slot *s, int part)
{
    mimo_layer_weights *layer = &b->layer[s->layer];
    if (layer->mlps == 0) {
        layer->mlps = b->config->sparse[s->layer] ? b->config->experts : 1;
        b->mlp = b->matrix;
        b->matrix += 3 * (size_t)layer->mlps;
        layer->gate = b->mlp;
        layer->up = layer->gate + layer->mlps;
        layer->down = layer->up + layer->mlps;
    }
    return bind_matrix(b, s, b->mlp + (size_t)part * layer->mlps + s->expert);
}

static mimo_status bind(binder *b, const slot *s)
{
    mimo_layer_weights *layer = &b->layer[s->layer];
    switch (s->role) {
    case ROLE_EMBED:
        return bind_matrix(b, s, &b->out->embed);
    case ROLE_HEAD:
        return bind_matrix(b, s, &b->out->head);
    case ROLE_NORM:
        return bind_vector(b, s, &b->out->norm);
    case ROLE_FUSE:
        return bind_matrix(b, s, &b->out->fuse);
    case ROLE_FUSE_NORM:
        return bind_vector(b, s, &b->out->fuse_norm);
    case ROLE_MASK:
        return bind_vector(b, s, &b->out->mask);
    case ROLE_MARKOV_IN:
        return bind_matrix(b, s, &b->out->markov_in);
    case ROLE_MARKOV_OUT:
        return bind_matrix(b, s, &b->out->markov_out);
    case ROLE_ATTENTION_NORM:
        return bind_vector(b, s, &layer->attention_norm);
    case ROLE_MLP_NORM:
        return bind_vector(b, s, &layer->mlp_norm);
    case ROLE_SINKS:
        return bind_vector(b, s, &layer->sinks);
    case ROLE_Q_NORM:
        return bind_vector(b, s, &layer->q_norm);
    case ROLE_K_NORM:
        return bind_vector(b, s, &layer->k_norm);
    case ROLE_QKV:
    case ROLE_Q:
    case ROLE_K:
    case ROLE_V:
        return bind_matrix(b, s, &layer->qkv);
    case ROLE_OUT:
        return bind_matrix(b, s, &layer->out);
    case ROLE_ROUTER:
        return bind_matrix(b, s, &layer->router);
    case ROLE_ROUTER_BIAS:
        return bind_vector(b, s, &layer->router_bias);
    case ROLE_DENSE_GATE:
    case ROLE_GATE:
        return bind_mlp(b, s, 0);
    case ROLE_DENSE_UP:
    case ROLE_UP:
        return bind_mlp(b, s, 1);
    default:
        return bind_mlp(b, s, 2);
    }
}

/* Room for every matrix and segment the config can make of the tensors that are there. */
static mimo_status allocate(binder *b)
{
    const mimo_config *config = b->config;
    size_t matrices = 0, segments = 5; /* embedding and head, or a drafter's three */
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        const mimo_attention *a = mimo_layer_attention(config, layer);
        const size_t mlps = config->sparse[layer] ? config->experts : 1;
        matrices += 3 * mlps;
        segments += 3 * mlps + 2; /* out and router */
        segments += config->qkv_chunks > 0 ? 3 * (size_t)config->qkv_chunks : a->heads + 2 * (size_t)a->kv_heads;
    }
    void **arena = b->out->arena;
    const char *what = "the description of the weights";
    MIMO_TRY(mimo_alloc_array(&arena[ARENA_LAYERS], config->layers, sizeof(mimo_layer_weights), what, b->err));
    MIMO_TRY(mimo_alloc_array(&arena[ARENA_MATRICES], matrices, sizeof(mimo_matrix), what, b->err));
    MIMO_TRY(mimo_alloc_array(&arena[ARENA_SEGMENTS], segments, sizeof(mimo_segment), what, b->err));
    b->layer = arena[ARENA_LAYERS];
    b->matrix = arena[ARENA_MATRICES];
    b->segment = arena[ARENA_SEGMENTS];
    b->out->layer = b->layer;
    return MIMO_OK;
}

static mimo_status bind_all(binder *b)
{
    MIMO_TRY(walk(b, require));
    MIMO_TRY(allocate(b));
    MIMO_TRY(walk(b, bind));
    if (b->config->tied_head) {
        b->out->head = b->out->embed;
        const slot copy = {
            .role = ROLE_HEAD, .shape = {b->out->embed.rows, b->out->embed.cols, true}, .name = "lm_head.weight"};
        stored ignored;
        if (mimo_index_find(&b->index, copy.name) != NULL)
            MIMO_TRY(take_matrix(b, &copy, &ignored));
    }
    const mimo_tensor *left = mimo_index_untaken(&b->index);
    if (left != NULL)
        return MIMO_FAIL(b->err, MIMO_ERR_FORMAT, "%s: expected no such tensor by the config, found one of dtype %s",
                         left->name, left->dtype_name);
    return MIMO_OK;
}

mimo_status mimo_weights_bind(mimo_weights *out, const mimo_config *config, const mimo_tensor *tensors, size_t count,
                              const uint64_t *file_bytes, size_t files, mimo_error *err)
{
    *out = (mimo_weights){0};
    binder b = {.config = config, .out = out, .err = err};
    MIMO_TRY(mimo_index_open(&b.index, tensors, count, file_bytes, files, err));
    const mimo_status status = bind_all(&b);
    mimo_index_close(&b.index);
    if (status != MIMO_OK)
        mimo_weights_release(out);
    return status;
}

void mimo_weights_release(mimo_weights *weights)
{
    for (size_t i = 0; i < sizeof weights->arena / sizeof *weights->arena; i++)
        mimo_free(weights->arena[i]);
    *weights = (mimo_weights){0};
}
