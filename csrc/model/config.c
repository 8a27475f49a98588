#include "model/config.h"

#include <math.h>
#include <stdbool.h>

/* Limits far above any model of the family. With them every product of two or three dimensions that the core forms fits
 * 32 bits (qkv rows) or 48 bits (elements of a matrix); sums over layers are checked where they are formed. */
enum {
    LARGEST_HIDDEN = 1 << 16,
    LARGEST_WIDTH = 1 << 20,
    LARGEST_VOCAB = 1 << 24,
    LARGEST_POSITIONS = 1 << 30,
    LARGEST_HEADS = 1024,
    LARGEST_HEAD_DIM = 1024,
    LARGEST_EXPERTS = 1 << 14,
    HEAD_DIM_UNIT = 8
};

static mimo_status check_range(const char *field, uint32_t value, uint32_t low, uint32_t high, mimo_error *err)
{
    if (value < low || value > high)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s: expected %u to %u, found %u", field, low, high, value);
    return MIMO_OK;
}

static mimo_status check_finite(const char *field, float value, bool positive, mimo_error *err)
{
    if (!isfinite(value) || (positive && value <= 0.0f))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s: expected a finite number%s, found %g", field,
                         positive ? " above 0" : "", (double)value);
    return MIMO_OK;
}

static mimo_status check_heads(const mimo_attention *a, const char *kind, uint32_t chunks, mimo_error *err)
{
    if (a->heads < 1 || a->heads > LARGEST_HEADS)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s.heads: expected 1 to %d, found %u", kind, LARGEST_HEADS,
                         a->heads);
    if (a->kv_heads < 1 || a->kv_heads > a->heads || a->heads % a->kv_heads != 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s.kv_heads: expected a divisor of its %u heads, found %u", kind,
                         a->heads, a->kv_heads);
    if (chunks > 0 && (a->heads % chunks != 0 || a->kv_heads % chunks != 0))
        return MIMO_FAIL(
            err, MIMO_ERR_VALUE,
            "config.qkv_chunks: expected a divisor of the %u heads and %u kv_heads of %s attention, found %u", a->heads,
            a->kv_heads, kind, chunks);
    return MIMO_OK;
}

static mimo_status check_head_dim(const char *kind, const char *field, uint32_t value, mimo_error *err)
{
    if (value < HEAD_DIM_UNIT || value > LARGEST_HEAD_DIM || value % HEAD_DIM_UNIT != 0)
        return MIMO_FAIL(
            err, MIMO_ERR_VALUE,
            "config.%s.%s: expected a multiple of %d up to %d (the kernels work on %d dims at a time), found %u", kind,
            field, HEAD_DIM_UNIT, LARGEST_HEAD_DIM, HEAD_DIM_UNIT, value);
    return MIMO_OK;
}

static mimo_status check_attention(const mimo_config *config, uint32_t index, mimo_error *err)
{
    const mimo_attention *a = &config->attention[index];
    const char *kind = index == MIMO_FULL ? "full" : "sliding";
    MIMO_TRY(check_heads(a, kind, config->qkv_chunks, err));
    MIMO_TRY(check_head_dim(kind, "head_dim", a->head_dim, err));
    MIMO_TRY(check_head_dim(kind, "v_head_dim", a->v_head_dim, err));
    if (a->rotary_dim > a->head_dim || a->rotary_dim % 2 != 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE,
                         "config.%s.rotary_dim: expected an even number up to head_dim %u, found %u", kind, a->head_dim,
                         a->rotary_dim);
    if (index == MIMO_FULL && a->window != 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.full.window: expected 0 (no window), found %u", a->window);
    if (index == MIMO_SLIDING && (a->window < 1 || a->window > LARGEST_POSITIONS))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.sliding.window: expected 1 to %d, found %u", LARGEST_POSITIONS,
                         a->window);
    if (!isfinite(a->rope_theta) || a->rope_theta <= 0.0f)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s.rope_theta: expected a finite number above 0, found %g", kind,
                         (double)a->rope_theta);
    if (a->sinks > 1)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s.sinks: expected 0 or 1, found %u", kind, a->sinks);
    return MIMO_OK;
}

static mimo_status check_experts(const mimo_config *config, mimo_error *err)
{
    MIMO_TRY(check_range("expert_width", config->expert_width, 1, LARGEST_WIDTH, err));
    MIMO_TRY(check_range("experts", config->experts, 1, LARGEST_EXPERTS, err));
    const uint32_t most = config->experts < MIMO_MAX_TOP_K ? config->experts : MIMO_MAX_TOP_K;
    return check_range("top_k", config->top_k, 1, most, err);
}

mimo_status mimo_config_check(const mimo_config *config, mimo_error *err)
{
    MIMO_TRY(check_range("hidden", config->hidden, 1, LARGEST_HIDDEN, err));
    MIMO_TRY(check_range("layers", config->layers, 1, MIMO_MAX_LAYERS, err));
    MIMO_TRY(check_range("vocab", config->vocab, 1, LARGEST_VOCAB, err));
    MIMO_TRY(check_range("max_positions", config->max_positions, 1, LARGEST_POSITIONS, err));
    MIMO_TRY(check_range("norm_topk", config->norm_topk, 0, 1, err));
    MIMO_TRY(check_range("tied_head", config->tied_head, 0, 1, err));
    MIMO_TRY(check_range("qk_norm", config->qk_norm, 0, 1, err));
    MIMO_TRY(check_finite("norm_eps", config->norm_eps, true, err));
    MIMO_TRY(check_finite("value_scale", config->value_scale, false, err));
    MIMO_TRY(check_finite("routed_scale", config->routed_scale, false, err));

    bool attention_used[2] = {false, false}, mlp_used[2] = {false, false};
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        if (config->sliding[layer] > 1 || config->sparse[layer] > 1)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s[%u]: expected 0 or 1, found %u",
                             config->sliding[layer] > 1 ? "layer_sliding" : "layer_sparse", layer,
                             config->sliding[layer] > 1 ? config->sliding[layer] : config->sparse[layer]);
        attention_used[config->sliding[layer]] = true;
        mlp_used[config->sparse[layer]] = true;
    }
    for (uint32_t index = 0; index < 2; index++)
        if (attention_used[index])
            MIMO_TRY(check_attention(config, index, err));
    if (mlp_used[0])
        MIMO_TRY(check_range("dense_width", config->dense_width, 1, LARGEST_WIDTH, err));
    return mlp_used[1] ? check_experts(config, err) : MIMO_OK;
}
