/* From logits to a token.
 *
 * The token at a position is a pure function of (logits, sampling, seed, stream, position): Gumbel-max with
 * counter-based noise (Philox4x32-10, Salmon et al. 2011), so that verifying a draft and decoding plainly choose the
 * same token. Order of the steps, as in Hugging Face transformers: repetition penalty, temperature, top-k, top-p,
 * min-p. Greedy is the noise-free case. */
#ifndef MIMO_SAMPLE_SAMPLE_H
#define MIMO_SAMPLE_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { MIMO_MAX_LOGPROBS = 20 };

/* What noise is for: that of one purpose is independent of that of another, at the same seed and position. */
typedef enum mimo_purpose {
    MIMO_NOISE_TOKEN,    /* choosing the model's own token; a coupled draft is drawn with the same */
    MIMO_NOISE_DRAFT,    /* drawing a draft that rejection sampling verifies */
    MIMO_NOISE_ACCEPT,   /* accepting it */
    MIMO_NOISE_RESIDUAL, /* the token in its place when it is rejected */
} mimo_purpose;

typedef struct mimo_noise {
    uint64_t seed, position;
    uint32_t stream;
    mimo_purpose purpose;
} mimo_noise;

typedef struct mimo_sampling {
    float temperature;        /* >= 0; 0 is greedy */
    float top_p;              /* 0 < top_p <= 1; 1 is off */
    float min_p;              /* 0 <= min_p <= 1; 0 is off */
    float repetition_penalty; /* > 0; 1 is off (Keskar et al. 2019: positive logits are divided, negative ones
                                 multiplied) */
    uint32_t top_k;           /* 0 is off */
    uint32_t
        logprobs; /* how many of the most likely tokens to report; -1 as UINT32_MAX: none, not even the chosen one's */
    uint64_t seed;
    uint32_t stream;      /* which of n answers to one prompt */
    mimo_purpose purpose; /* MIMO_NOISE_TOKEN, or MIMO_NOISE_DRAFT */
    const uint32_t *ids;  /* [V] ascending: the tokens of the logits, which are some of the vocabulary's; the noise is
                             theirs, but what is seen, chosen and reported are places in ids. NULL: tokens 0 to V - 1 */
} mimo_sampling;

typedef struct mimo_choice {
    uint32_t token;
    uint32_t tops;                         /* entries of the arrays below */
    float logprob;                         /* log-softmax of the raw logits (before penalty and temperature) at token */
    uint32_t top_token[MIMO_MAX_LOGPROBS]; /* most likely first, lower id first on a tie */
    float top_logprob[MIMO_MAX_LOGPROBS];
} mimo_choice;

MIMO_MUST_CHECK mimo_status mimo_sampling_check(const mimo_sampling *sampling, mimo_error *err);

size_t mimo_sample_scratch_bytes(size_t V);

/* Chooses the token of `position` (that is, the token that will stand there). logits [V] may be overwritten. seen
 * [n_seen]: the distinct ids that the repetition penalty applies to. A NaN, or no finite logit, is MIMO_ERR_ENGINE
 * naming the position. Ties go to the lower id. */
MIMO_MUST_CHECK mimo_status mimo_sample(mimo_choice *out, float *logits, size_t V, const mimo_sampling *sampling,
                                        uint64_t position, const uint32_t *seen, size_t n_seen, void *scratch,
                                        mimo_error *err);

/* What mimo_sample draws from, without its noise: law [V] sums to 1. logits are as before afterwards. */
MIMO_MUST_CHECK mimo_status mimo_sample_law(double *law, float *logits, size_t V, const mimo_sampling *sampling,
                                            uint64_t position, const uint32_t *seen, size_t n_seen, void *scratch,
                                            mimo_error *err);

/* The choice of a given token: what mimo_sample reports beside it. Reads raw logits [V]. */
MIMO_MUST_CHECK mimo_status mimo_sample_report(mimo_choice *out, const float *logits, size_t V,
                                               const mimo_sampling *sampling, uint64_t position, uint32_t token,
                                               void *scratch, mimo_error *err);

/* Philox4x32-10: out[4] = the block of (key, counter). */
void mimo_philox(uint32_t out[4], const uint32_t key[2], const uint32_t counter[4]);
/* The counter of a token's noise: no two (purpose, stream, position, token / 4) share one. */
void mimo_noise_counter(uint32_t counter[4], const mimo_noise *noise, uint32_t token);
/* Standard Gumbel noise of a token. */
double mimo_gumbel(const mimo_noise *noise, uint32_t token);
/* Uniform on [0, 1), 53 bits. */
double mimo_uniform(const mimo_noise *noise);

#endif
