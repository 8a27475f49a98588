/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) and Gumbel noise of its words.
 *
 * counter = (position low, position high, purpose * 2^30 + token / 4, stream), key = (seed low, seed high); token % 4
 * picks the word. Ids are below 2^32, so that no two purposes share a counter. */
#include "sample/philox.h"

#include <math.h>
#include <string.h>

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

/* Counters side by side, and then their blocks: word w of block i is w[i] of a, b, c and d. */
typedef struct blocks {
    uint32_t a[MIMO_SPAN_BLOCKS], b[MIMO_SPAN_BLOCKS], c[MIMO_SPAN_BLOCKS], d[MIMO_SPAN_BLOCKS];
} blocks;

static inline void set_counter(blocks *x, int i, const uint32_t first[4], uint32_t block)
{
    x->a[i] = first[0];
    x->b[i] = first[1];
    x->c[i] = first[2] + block;
    x->d[i] = first[3];
}

/* mimo_philox on all of them, so that the compiler makes vectors of the inner loop. */
static inline void mix(blocks *x, uint64_t seed)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 1 /* unrolled first, it would stay scalar */
        for (int i = 0; i < MIMO_SPAN_BLOCKS; i++) {
            const uint64_t p = (uint64_t)MULTIPLIER_0 * x->a[i];
            const uint64_t q = (uint64_t)MULTIPLIER_1 * x->c[i];
            x->a[i] = (uint32_t)(q >> 32) ^ x->b[i] ^ k0;
            x->b[i] = (uint32_t)q;
            x->c[i] = (uint32_t)(p >> 32) ^ x->d[i] ^ k1;
            x->d[i] = (uint32_t)p;
        }
        k0 += WEYL_0;
        k1 += WEYL_1;
    }
}

void mimo_philox_span(uint32_t words[4][MIMO_SPAN_BLOCKS], const mimo_noise *noise, uint32_t span)
{
    uint32_t first[4];
    mimo_noise_counter(first, noise, span * MIMO_SPAN);
    blocks x;
    for (int i = 0; i < MIMO_SPAN_BLOCKS; i++)
        set_counter(&x, i, first, (uint32_t)i);
    mix(&x, noise->seed);
    memcpy(words[0], x.a, sizeof x.a);
    memcpy(words[1], x.b, sizeof x.b);
    memcpy(words[2], x.c, sizeof x.c);
    memcpy(words[3], x.d, sizeof x.d);
}

void mimo_philox_ids(uint32_t words[4][MIMO_SPAN_BLOCKS], const mimo_noise *noise, const uint32_t *id, size_t count)
{
    uint32_t first[4];
    mimo_noise_counter(first, noise, 0);
    for (size_t begin = 0; begin < MIMO_SPAN; begin += MIMO_SPAN_BLOCKS) {
        blocks x;
        for (int i = 0; i < MIMO_SPAN_BLOCKS; i++)
            set_counter(&x, i, first, begin + (size_t)i < count ? id[begin + (size_t)i] / 4 : 0);
        mix(&x, noise->seed);
        for (int i = 0; i < MIMO_SPAN_BLOCKS; i++) {
            const size_t at = begin + (size_t)i;
            const uint32_t block[4] = {x.a[i], x.b[i], x.c[i], x.d[i]};
            words[at % 4][at / 4] = at < count ? block[id[at] % 4] : 0;
        }
    }
}
