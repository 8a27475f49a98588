/* The sampler's noise (sample/philox.c) as bodies draw it: the same words, so that a token is the same function of
 * (logits, sampling, seed, position) everywhere. */
#ifndef MIMO_CUDA_OP_NOISE_H
#define MIMO_CUDA_OP_NOISE_H

#include <math.h>
#include <stdint.h>

#include "base/target.h"

/* Philox4x32-10. */
MIMO_HD inline void mimo_cuda_philox(uint32_t out[4], const uint32_t key[2], const uint32_t counter[4])
{
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t p = (uint64_t)0xD2511F53u * a, q = (uint64_t)0xCD9E8D57u * c;
        a = (uint32_t)(q >> 32) ^ b ^ k0;
        b = (uint32_t)q;
        c = (uint32_t)(p >> 32) ^ d ^ k1;
        d = (uint32_t)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

/* Standard Gumbel noise of a token at a position: that of choosing the model's own token, and of coupled drafts. */
MIMO_HD inline double mimo_cuda_gumbel(uint64_t seed, uint32_t stream, uint64_t position, uint32_t token)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), token / 4, stream};
    uint32_t words[4];
    mimo_cuda_philox(words, key, counter);
    const uint32_t word = token % 4 == 0 ? words[0] : token % 4 == 1 ? words[1] : token % 4 == 2 ? words[2] : words[3];
    return -log(-log(((double)word + 0.5) * 0x1p-32));
}

#endif
