#include "cuda/shard.h"

#include "base/alloc.h"
#include "cuda/lower.h"

static mimo_status divide(uint32_t *value, const char *field, uint32_t world, uint32_t unit, mimo_error *err)
{
    if (*value % (world * unit) != 0)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "config.%s: expected a multiple of %u for %u ranks, found %u",
                         field, world * unit, world, *value);
    *value /= world;
    return MIMO_OK;
}

mimo_status mimo_shard_config(mimo_config *out, const mimo_config *config, uint32_t world, mimo_error *err)
{
    *out = *config;
    if (world == 1)
        return MIMO_OK;
    if (world < 1 || world > 8)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "world: expected 1 to 8 ranks, found %u", world);
    for (uint32_t kind = 0; kind < 2; kind++) {
        mimo_attention *a = &out->attention[kind];
        MIMO_TRY(divide(&a->heads, "attention.heads", world, 1, err));
        if (a->kv_heads % world != 0 && world % a->kv_heads != 0)
            return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                             "config.attention.kv_heads: expected a divisor or a multiple of %u ranks, found %u", world,
                             a->kv_heads);
        a->kv_heads = a->kv_heads > world ? a->kv_heads / world : 1;
    }
    /* Blocks of MXFP4 scales are not cut. */
    MIMO_TRY(divide(&out->dense_width, "dense_width", world, 32, err));
    if (out->experts > 0)
        MIMO_TRY(divide(&out->expert_width, "expert_width", world, 32, err));
    MIMO_TRY(divide(&out->vocab, "vocab", world, 1, err));
    out->qkv_chunks = 0;
    return MIMO_OK;
}

/* ---- matrices ---- */

typedef struct sharding {
    mimo_segment *segment; /* next free, as is the next */
    mimo_matrix *matrix;
    mimo_error *err;
    mimo_status status; /* the first failure */
} sharding;

static mimo_matrix part(sharding *s, const mimo_matrix *whole, uint32_t rows, uint32_t cols)
{
    mimo_matrix out = *whole;
    if (whole->rows == 0)
        return out;
    if (whole->format == MIMO_FORMAT_MXFP4 && cols % 32 != 0 && s->status == MIMO_OK)
        s->status = MIMO_FAIL(s->err, MIMO_ERR_UNSUPPORTED,
                              "%s: expected a rank's columns in multiples of 32, found %u", whole->name, cols);
    *s->segment = (mimo_segment){.rows = rows};
    out.rows = rows;
    out.cols = cols;
    out.segments = 1;
    out.segment = s->segment++;
    return out;
}

static void shard_layer(sharding *s, mimo_layer_weights *out, const mimo_config *c, uint32_t i,
                        const mimo_layer_weights *whole)
{
    const mimo_attention *a = mimo_layer_attention(c, i);
    const uint32_t F = c->sparse[i] ? c->expert_width : c->dense_width;
    *out = *whole;
    if (out->sinks.length > 0)
        out->sinks.length = a->heads;
    out->qkv = part(s, &whole->qkv, mimo_qkv_rows(a), c->hidden);
    out->out = part(s, &whole->out, c->hidden, a->heads * a->v_head_dim);
    out->router = part(s, &whole->router, c->experts, c->hidden);
    mimo_matrix *mlp = s->matrix;
    s->matrix += 3 * (size_t)whole->mlps;
    for (uint32_t e = 0; e < whole->mlps; e++) {
        mlp[e] = part(s, &whole->gate[e], F, c->hidden);
        mlp[whole->mlps + e] = part(s, &whole->up[e], F, c->hidden);
        mlp[2 * whole->mlps + e] = part(s, &whole->down[e], c->hidden, F);
    }
    out->gate = mlp;
    out->up = mlp + whole->mlps;
    out->down = mlp + 2 * (size_t)whole->mlps;
}

static mimo_status shard_all(mimo_weights *out, const mimo_config *c, const mimo_weights *whole, uint32_t world,
                             mimo_error *err)
{
    size_t mlps = 0;
    for (uint32_t i = 0; i < c->layers; i++)
        mlps += whole->layer[i].mlps;
    const size_t segments = 3 + 3 * (size_t)c->layers + 3 * mlps;
    mimo_layer_weights *layer;
    sharding s = {.err = err};
    MIMO_TRY(mimo_alloc_array(&out->arena[0], c->layers, sizeof *layer, "a rank's weights", err));
    MIMO_TRY(mimo_alloc_array(&out->arena[1], 3 * mlps, sizeof *s.matrix, "a rank's weights", err));
    MIMO_TRY(mimo_alloc_array(&out->arena[2], segments, sizeof *s.segment, "a rank's weights", err));
    out->layer = layer = out->arena[0];
    s.matrix = out->arena[1];
    s.segment = out->arena[2];
    out->norm = whole->norm;
    out->fuse_norm = whole->fuse_norm;
    out->mask = whole->mask;
    const uint32_t dim[2] = {c->taps, c->hidden};
    out->embed = part(&s, &whole->embed, c->vocab, c->hidden);
    out->head = c->tied_head ? out->embed : part(&s, &whole->head, c->vocab, c->hidden);
    out->fuse = part(&s, &whole->fuse, c->hidden, mimo_fuse_width(dim, world));
    for (uint32_t i = 0; i < c->layers; i++)
        shard_layer(&s, &layer[i], c, i, &whole->layer[i]);
    return s.status;
}

mimo_status mimo_shard_weights(mimo_weights *out, const mimo_config *config, const mimo_weights *whole, uint32_t world,
                               mimo_error *err)
{
    *out = (mimo_weights){0};
    const mimo_status status = shard_all(out, config, whole, world, err);
    if (status != MIMO_OK)
        mimo_weights_release(out);
    return status;
}

mimo_status mimo_shard_draft(mimo_draft *out, const mimo_draft *whole, const mimo_weights *target, uint32_t world,
                             mimo_error *err)
{
    *out = (mimo_draft){.config = whole->config};
    if (whole->config.target_id != NULL)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "draft: expected one that drafts all ids, found one of %u",
                         whole->config.model.vocab);
    MIMO_TRY(mimo_shard_config(&out->config.model, &whole->config.model, world, err));
    MIMO_TRY(mimo_shard_weights(&out->weights, &out->config.model, &whole->weights, world, err));
    out->weights.head = target->head;
    return MIMO_OK;
}
