/* Drafts from the text itself (dflash/lookup.h), where they stand beside a drafter's: what followed the latest earlier
 * place at which the text had its last tokens.
 *
 * The host keeps tables of n-grams; here the whole team reads the text. */
#ifndef MIMO_CUDA_TILE_LOOKUP_H
#define MIMO_CUDA_TILE_LOOKUP_H

#include "cuda/tile/filter.h"
#include "cuda/tile/machine.h"

enum {
    MIMO_TILE_GRAM_LEAST = 2,
    MIMO_TILE_GRAM_MOST = 4,
    MIMO_TILE_GRAM_REACH = 1 << 15, /* how far back a place may be */
};

/* How many tokens before `at` are the last ones of text [count], up to MIMO_TILE_GRAM_MOST. */
MIMO_BODY inline uint32_t mimo_tile_gram(const uint32_t *text, uint32_t count, uint32_t at)
{
    uint32_t length = 0;
    while (length < MIMO_TILE_GRAM_MOST && length < at && text[at - 1 - length] == text[count - 1 - length])
        length++;
    return length;
}

/* The longest match in text [count], the latest of several. Every thread of the team gets it. */
template <class Team>
MIMO_BODY inline mimo_tile_match mimo_tile_look_up(const Team &team, const uint32_t *text, uint32_t count)
{
    const uint32_t first = count > MIMO_TILE_GRAM_REACH ? count - MIMO_TILE_GRAM_REACH : 0;
    const uint64_t best = mimo_tile_most<uint64_t>(team, count - first, [&](uint32_t i) {
        const uint32_t length = mimo_tile_gram(text, count, first + i);
        return length >= MIMO_TILE_GRAM_LEAST ? (uint64_t)length << 32 | (first + i) : 0;
    });
    return {(uint32_t)(best >> 32), (uint32_t)best};
}

/* The i-th token after a match; one beyond the text's end is what would come if the text went on as it did since. */
MIMO_BODY inline uint32_t mimo_tile_followed(const mimo_tile_match &match, const uint32_t *text, uint32_t count,
                                             uint32_t i)
{
    return text[match.at + i % (count - match.at)];
}

#endif
