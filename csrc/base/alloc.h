/* The only malloc and free of the core.
 *
 * Blocks are 64-byte aligned and zeroed. Blocks of 256 KiB and more are pages of their own, which take memory only as
 * they are written and give it back when they are freed. Allocations are counted, can be made to fail on demand (tests
 * fail the n-th one for every n), and are refused on a thread that is decoding. */
#ifndef MIMO_BASE_ALLOC_H
#define MIMO_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mimo_alloc_stats {
    uint64_t live_bytes, peak_bytes; /* peak since the last mimo_alloc_reset_peak */
    uint64_t live_blocks;
    uint64_t calls;   /* allocations asked for since the process started */
    uint64_t refused; /* asked for by a frozen thread: a bug, counted so that a test can see it */
} mimo_alloc_stats;

/* bytes zeroed bytes, or NULL. mimo_alloc(0) is a valid, distinct block. Any thread. */
void *mimo_alloc(size_t bytes) __attribute__((malloc));
void mimo_free(void *block); /* NULL is fine */

/* The block will be written whole, and read often: it had better have huge pages, if there are. Before it is written.
 */
void mimo_alloc_will_fill(void *block);

/* *out = an array of count elements of size bytes; MIMO_ERR_NOMEM names `what`. */
MIMO_MUST_CHECK mimo_status mimo_alloc_array(void *out, size_t count, size_t size, const char *what, mimo_error *err);

/* Blocks that are freed together, as a list; {0} is empty. */
typedef struct mimo_blocks {
    void *last;
} mimo_blocks;

/* As mimo_alloc_array, freed with the list. */
MIMO_MUST_CHECK mimo_status mimo_blocks_array(mimo_blocks *blocks, void *out, size_t count, size_t size,
                                              const char *what, mimo_error *err);
void mimo_blocks_free(mimo_blocks *blocks);

/* Gives the process's free heap memory back to the system, whoever freed it (a library that read a tokenizer, say). */
void mimo_alloc_trim(void);

/* From now on the n-th call (1 = the next) fails, and every later one too if `persistent`; 0 turns it off. */
void mimo_alloc_fail(uint64_t n, bool persistent);

/* While frozen, the calling thread's allocations return NULL and count as refused. */
void mimo_alloc_freeze(bool frozen);

mimo_alloc_stats mimo_alloc_read_stats(void);
void mimo_alloc_reset_peak(void);

#endif
