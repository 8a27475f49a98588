/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) and Gumbel noise of its words.
 *
 * counter = (position low, position high, token / 4, stream), key = (seed low, seed high); token % 4 picks the word. */
#include "engine/philox.h"

#include <math.h>

#include "engine/sample.h"

enum { ROUNDS = 10 };

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

double mimo_gumbel(uint64_t seed, uint32_t stream, uint64_t position, uint32_t token)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), token / 4, stream};
    uint32_t block[4];
    mimo_philox(block, key, counter);
    return mimo_gumbel_word(block[token % 4]);
}

/* mimo_philox on MIMO_SPAN_BLOCKS counters side by side, so that the compiler makes vectors of the inner loop. */
void mimo_philox_span(uint32_t words[4][MIMO_SPAN_BLOCKS], uint64_t seed, uint32_t stream, uint64_t position,
                      uint32_t span)
{
    uint32_t a[MIMO_SPAN_BLOCKS], b[MIMO_SPAN_BLOCKS], c[MIMO_SPAN_BLOCKS], d[MIMO_SPAN_BLOCKS];
    for (uint32_t i = 0; i < MIMO_SPAN_BLOCKS; i++) {
        a[i] = (uint32_t)position;
        b[i] = (uint32_t)(position >> 32);
        c[i] = span * MIMO_SPAN_BLOCKS + i;
        d[i] = stream;
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
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
