/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) and Gumbel noise of its words.
 *
 * counter = (position low, position high, purpose * 2^30 + token / 4, stream), key = (seed low, seed high); token % 4
 * picks the word. Ids are below 2^32, so that no two purposes share a counter. */
#include "sample/philox.h"

#include <math.h>

enum { ROUNDS = 10, PURPOSE_SHIFT = 30 };

#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u /* golden ratio */
#define WEYL_1 0xBB67AE85u /* sqrt(3) - 1 */

void mimo_philox(uint32_t out[4], const uint32_t key[2], const uint32_t counter[4])
{
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t p = (uint64_t)MULTIPLIER_0 * a;
        const uint64_t q = (uint64_t)MULTIPLIER_1 * c;
        a = (uint32_t)(q >> 32) ^ b ^ k0;
        b = (uint32_t)q;
        c = (uint32_t)(p >> 32) ^ d ^ k1;
        d = (uint32_t)p;
        k0 += WEYL_0;
        k1 += WEYL_1;
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

double mimo_gumbel_word(uint32_t word)
{
    return -log(-log(((double)word + 0.5) * 0x1p-32));
}

void mimo_noise_counter(uint32_t counter[4], const mimo_noise *noise, uint32_t token)
{
    counter[0] = (uint32_t)noise->position;
    counter[1] = (uint32_t)(noise->position >> 32);
    counter[2] = (uint32_t)noise->purpose << PURPOSE_SHIFT | token / 4;
    counter[3] = noise->stream;
}

static void noise_block(uint32_t block[4], const mimo_noise *noise, uint32_t token)
{
    const uint32_t key[2] = {(uint32_t)noise->seed, (uint32_t)(noise->seed >> 32)};
    uint32_t counter[4];
    mimo_noise_counter(counter, noise, token);
    mimo_philox(block, key, counter);
}

double mimo_gumbel(const mimo_noise *noise, uint32_t token)
{
    uint32_t block[4];
    noise_block(block, noise, token);
    return mimo_gumbel_word(block[token % 4]);
}

double mimo_uniform(const mimo_noise *noise)
{
    uint32_t block[4];
    noise_block(block, noise, 0);
    return ((double)(block[0] >> 5) * 0x1p26 + (double)(block[1] >> 6)) * 0x1p-53;
}

/* mimo_philox on MIMO_SPAN_BLOCKS counters side by side, so that the compiler makes vectors of the inner loop. */
void mimo_philox_span(uint32_t words[4][MIMO_SPAN_BLOCKS], const mimo_noise *noise, uint32_t span)
{
    uint32_t first[4];
    mimo_noise_counter(first, noise, span * MIMO_SPAN);
    uint32_t a[MIMO_SPAN_BLOCKS], b[MIMO_SPAN_BLOCKS], c[MIMO_SPAN_BLOCKS], d[MIMO_SPAN_BLOCKS];
    for (uint32_t i = 0; i < MIMO_SPAN_BLOCKS; i++) {
        a[i] = first[0];
        b[i] = first[1];
        c[i] = first[2] + i;
        d[i] = first[3];
    }
    uint32_t k0 = (uint32_t)noise->seed, k1 = (uint32_t)(noise->seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 1 /* unrolled first, it would stay scalar */
        for (int i = 0; i < MIMO_SPAN_BLOCKS; i++) {
            const uint64_t p = (uint64_t)MULTIPLIER_0 * a[i];
            const uint64_t q = (uint64_t)MULTIPLIER_1 * c[i];
            a[i] = (uint32_t)(q >> 32) ^ b[i] ^ k0;
            b[i] = (uint32_t)q;
            c[i] = (uint32_t)(p >> 32) ^ d[i] ^ k1;
            d[i] = (uint32_t)p;
        }
        k0 += WEYL_0;
        k1 += WEYL_1;
    }
    for (int i = 0; i < MIMO_SPAN_BLOCKS; i++) {
        words[0][i] = a[i];
        words[1][i] = b[i];
        words[2][i] = c[i];
        words[3][i] = d[i];
    }
}
