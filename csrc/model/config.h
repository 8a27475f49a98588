/* A MiMo-V2 model's dimensions, as plain checked values.
 *
 * Python reads config.json in all its spellings and hands over this struct; nothing here parses text. Letters used for
 * dimensions everywhere in the core:
 *   T rows (tokens) of a step     H hidden               N query heads     G key/value heads   D query/key head width
 *   Dv value head width           E experts              K experts chosen  F MLP width         V vocabulary
 *   L layers                      S context positions    B draft block      M taps of a drafter */
#ifndef MIMO_MODEL_CONFIG_H
#define MIMO_MODEL_CONFIG_H

#include <stdint.h>

#include "base/status.h"

enum {
    MIMO_MAX_LAYERS = 512,
    MIMO_MAX_TOP_K = 64,
    MIMO_MAX_TAPS = 16,
    MIMO_MAX_BLOCK = 16,
    MIMO_MAX_MARKOV_RANK = 4096
};
enum { MIMO_FULL = 0, MIMO_SLIDING = 1 }; /* index of mimo_config.attention, value of mimo_config.sliding */

typedef struct mimo_attention {
    uint32_t heads;      /* N */
    uint32_t kv_heads;   /* G; N % G == 0 */
    uint32_t head_dim;   /* D */
    uint32_t v_head_dim; /* Dv */
    uint32_t rotary_dim; /* first dims of q and k that turn; even, <= D */
    uint32_t window;     /* key j is visible from query i iff 0 <= i - j < window; 0: no window */
    float rope_theta;
    uint32_t sinks; /* 1: one learned logit per query head in the softmax denominator */
} mimo_attention;

typedef struct mimo_config {
    uint32_t hidden, layers, vocab, max_positions;
    uint32_t dense_width;    /* F of dense layers (intermediate_size) */
    uint32_t expert_width;   /* F of each expert (moe_intermediate_size) */
    uint32_t experts, top_k; /* E, K; 0 in a model without MoE layers */
    float norm_eps, value_scale, routed_scale;
    uint32_t norm_topk;               /* 1: chosen weights are divided by their sum */
    uint32_t tied_head;               /* 1: lm_head is embed_tokens */
    uint32_t qkv_chunks;              /* 0: split q/k/v tensors; else fused qkv_proj made of this many [Q|K|V] chunks */
    mimo_attention attention[2];      /* [MIMO_FULL], [MIMO_SLIDING] */
    uint8_t sliding[MIMO_MAX_LAYERS]; /* per layer: MIMO_FULL or MIMO_SLIDING */
    uint8_t sparse[MIMO_MAX_LAYERS];  /* per layer: 1 MoE, 0 dense MLP */

    /* Of a drafter (draft.h); 0 in a model that stands alone. */
    uint32_t taps;        /* M: streams of the target that make one row of context */
    uint32_t block;       /* B: rows of a block, the anchor included */
    uint32_t qk_norm;     /* 1: each query and key head is normed before its rotary embedding */
    uint32_t markov_rank; /* of the head's bias by the token before; 0: none */
} mimo_config;

/* Every rule above and the products that must fit; MIMO_ERR_VALUE names the field, the rule and the value found. */
MIMO_MUST_CHECK mimo_status mimo_config_check(const mimo_config *config, mimo_error *err);

static inline const mimo_attention *mimo_layer_attention(const mimo_config *config, uint32_t layer)
{
    return &config->attention[config->sliding[layer]];
}

/* Rows of the logical qkv matrix: all query heads, then all key heads, then all value heads. */
static inline uint32_t mimo_qkv_rows(const mimo_attention *a)
{
    return a->heads * a->head_dim + a->kv_heads * (a->head_dim + a->v_head_dim);
}

#endif
