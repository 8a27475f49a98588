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
