/* The noise of the sampler, by word: private to this room. */
#ifndef MIMO_SAMPLE_PHILOX_H
#define MIMO_SAMPLE_PHILOX_H

#include <stddef.h>
#include <stdint.h>

#include "sample/sample.h"

/* A span is the unit in which noise is made and logits are skipped. */
enum { MIMO_SPAN_BLOCKS = 16, MIMO_SPAN = 4 * MIMO_SPAN_BLOCKS };

/* No noise of a 32-bit word is above this: -log(-log(1 - 2^-33)) = 33 ln 2 = 22.8739. */
#define MIMO_GUMBEL_MAX 22.8741

/* Standard Gumbel noise of a random word: -log(-log(u)), u = (word + 0.5) / 2^32. */
double mimo_gumbel_word(uint32_t word);

/* The words of tokens [span * MIMO_SPAN, (span + 1) * MIMO_SPAN); that of the span's token i is words[i % 4][i / 4]. */
void mimo_philox_span(uint32_t words[4][MIMO_SPAN_BLOCKS], const mimo_noise *noise, uint32_t span);

/* The words of tokens id [count], count <= MIMO_SPAN, in the same places; the others are 0. */
void mimo_philox_ids(uint32_t words[4][MIMO_SPAN_BLOCKS], const mimo_noise *noise, const uint32_t *id, size_t count);

#endif
