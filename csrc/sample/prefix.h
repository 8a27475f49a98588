/* Prefixes of the vocabulary in order of likelihood: private to this room.
 *
 * A key orders tokens: the larger key is the larger logit, and the lower id where logits are equal. Every filter keeps
 * the tokens whose key is at least some cut, so filters combine by taking the larger cut, and nothing is ever sorted.
 */
#ifndef MIMO_SAMPLE_PREFIX_H
#define MIMO_SAMPLE_PREFIX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sample/philox.h"

/* The cut that keeps every finite logit: the least key that any of them has. */
#define MIMO_CUT_NONE ((uint64_t)0x00800000u << 32)

/* The least key of a token with this logit; -0 and 0 are equal. */
static inline uint64_t mimo_key_floor(float logit)
{
    const float x = logit + 0.0f;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint64_t)(bits ^ (bits >> 31 ? UINT32_MAX : (uint32_t)1 << 31)) << 32;
}

static inline uint64_t mimo_key(float logit, uint32_t token)
{
    return mimo_key_floor(logit) | (UINT32_MAX - token);
}

static inline float mimo_key_logit(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    bits ^= bits >> 31 ? (uint32_t)1 << 31 : UINT32_MAX;
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

static inline uint32_t mimo_key_token(uint64_t key)
{
    return UINT32_MAX - (uint32_t)key;
}

/* Logits and what one pass over them found. */
typedef struct mimo_spans {
    const float *logits; /* [V] */
    const float *maxima; /* [ceil(V / MIMO_SPAN)], the largest logit of each span */
    size_t V;
    float largest;
    uint32_t argmax; /* the lowest id that has it */
} mimo_spans;

size_t mimo_spans_count(size_t V);

/* Fills maxima [mimo_spans_count(V)] and returns the rest. *nan: some logit is NaN (the maxima then mean nothing). V >
 * 0. */
mimo_spans mimo_spans_scan(const float *logits, size_t V, float *maxima, int *nan);

/* Sum over i < n of exp((x[i] - largest) * scale); largest >= x, scale > 0. The order of the additions depends on n
 * alone. */
double mimo_exp_sum(const float *x, size_t n, float largest, float scale);

/* exp on [-inf, 0], relative error < 3e-7; 0 below -87.33. */
float mimo_exp_negative(float x);

/* out[i] = exp((logit of keys[i] - largest) * scale), i < n; the terms of mimo_exp_sum, bit for bit. */
void mimo_key_weights(float *out, const uint64_t *keys, size_t n, float largest, float scale);

/* Writes the keys >= cut, in order of token, and returns how many; keys has room for V. cut >= MIMO_CUT_NONE. */
size_t mimo_prefix_collect(uint64_t *keys, const mimo_spans *spans, uint64_t cut);

/* The largest cut that keeps keys (0 < n, distinct) of at least `target` in weight, or keeps all of them if all weigh
 * less. weights NULL: each weighs 1. Both arrays are overwritten. */
uint64_t mimo_prefix_cut(uint64_t *keys, float *weights, size_t n, double target);

/* The cut that keeps the k largest logits (k > 0), or MIMO_CUT_NONE if no more are finite. keys: scratch for V. */
uint64_t mimo_prefix_top(uint64_t *keys, const mimo_spans *spans, size_t k);

#endif
