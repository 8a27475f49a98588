#define _GNU_SOURCE
#include "base/alloc.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/size.h"

#define ALIGNMENT 64u
#define MAP_FROM ((size_t)256 << 10)

/* Stored in the cache line before each block. */
typedef struct header {
    size_t bytes;
    size_t mapped; /* bytes of the mapping that holds the block, 0 when it came from aligned_alloc */
} header;

static atomic_uint_fast64_t live_bytes, peak_bytes, live_blocks, calls, refused;
static atomic_int_fast64_t countdown; /* > 0: calls until the failure */
static atomic_bool failing;           /* a persistent failure has begun */
static atomic_bool fail_persistent;
static _Thread_local bool frozen_thread;

static bool must_fail(void)
{
    if (atomic_load_explicit(&failing, memory_order_relaxed))
        return true;
    if (atomic_load_explicit(&countdown, memory_order_relaxed) <= 0)
        return false;
    if (atomic_fetch_sub(&countdown, 1) != 1)
        return false;
    if (atomic_load(&fail_persistent))
        atomic_store(&failing, true);
    return true;
}

static char *heap_block(size_t bytes)
{
    const size_t total = mimo_round_up(bytes + ALIGNMENT, ALIGNMENT);
    char *base = aligned_alloc(ALIGNMENT, total);
    if (base == NULL)
        return NULL;
    memset(base, 0, total);
    ((header *)(void *)base)->bytes = bytes;
    return base;
}

/* Fresh pages are zero already, take no memory before they are written, and belong to the memory node of the thread
 * that first writes them. */
static char *map_block(size_t bytes)
{
    size_t total;
    if (!mimo_size_add(bytes, ALIGNMENT, &total))
        return NULL;
    char *base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    *(header *)(void *)base = (header){.bytes = bytes, .mapped = total};
    return base;
}

void *mimo_alloc(size_t bytes)
{
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    if (frozen_thread) {
        atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
        return NULL;
    }
    if (must_fail())
        return NULL;
    char *base = bytes >= MAP_FROM ? map_block(bytes) : heap_block(bytes);
    if (base == NULL)
        return NULL;
    const uint64_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    atomic_fetch_add(&live_blocks, 1);
    uint_fast64_t peak = atomic_load(&peak_bytes);
    while (peak < live && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {
    }
    return base + ALIGNMENT;
}

void mimo_alloc_will_fill(void *block)
{
    char *base = (char *)block - ALIGNMENT;
    const header block_header = *(const header *)(const void *)base;
    if (block_header.mapped > 0) /* a kernel without transparent huge pages serves the block all the same */
        (void)madvise(base, block_header.mapped, MADV_HUGEPAGE);
}

void mimo_free(void *block)
{
    if (block == NULL)
        return;
    char *base = (char *)block - ALIGNMENT;
    const header block_header = *(const header *)(const void *)base;
    atomic_fetch_sub(&live_bytes, block_header.bytes);
    atomic_fetch_sub(&live_blocks, 1);
    if (block_header.mapped > 0)
        munmap(base, block_header.mapped);
    else
        free(base);
}

mimo_status mimo_alloc_array(void *out, size_t count, size_t size, const char *what, mimo_error *err)
{
    size_t bytes;
    void *block = mimo_size_mul(count, size, &bytes) ? mimo_alloc(bytes) : NULL;
    if (block == NULL)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: %s needs %zu x %zu bytes", what, count, size);
    memcpy(out, &block, sizeof block);
    return MIMO_OK;
}

mimo_status mimo_blocks_array(mimo_blocks *blocks, void *out, size_t count, size_t size, const char *what,
                              mimo_error *err)
{
    size_t bytes;
    char *block = NULL;
    if (mimo_size_mul(count, size, &bytes) && mimo_size_add(bytes, ALIGNMENT, &bytes))
        block = mimo_alloc(bytes);
    if (block == NULL)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: %s needs %zu x %zu bytes", what, count, size);
    memcpy(block, &blocks->last, sizeof(void *));
    blocks->last = block;
    block += ALIGNMENT;
    memcpy(out, &block, sizeof block);
    return MIMO_OK;
}

void mimo_blocks_free(mimo_blocks *blocks)
{
    for (void *block = blocks->last; block != NULL;) {
        void *before;
        memcpy(&before, block, sizeof before);
        mimo_free(block);
        block = before;
    }
    blocks->last = NULL;
}

void mimo_alloc_trim(void)
{
#if defined(__GLIBC__)
    (void)malloc_trim(0);
#endif
}

void mimo_alloc_fail(uint64_t n, bool persistent)
{
    atomic_store(&failing, false);
    atomic_store(&fail_persistent, persistent);
    atomic_store(&countdown, (int_fast64_t)n);
}

void mimo_alloc_freeze(bool frozen)
{
    frozen_thread = frozen;
}

mimo_alloc_stats mimo_alloc_read_stats(void)
{
    return (mimo_alloc_stats){
        .live_bytes = atomic_load(&live_bytes),
        .peak_bytes = atomic_load(&peak_bytes),
        .live_blocks = atomic_load(&live_blocks),
        .calls = atomic_load(&calls),
        .refused = atomic_load(&refused),
    };
}

void mimo_alloc_reset_peak(void)
{
    atomic_store(&peak_bytes, atomic_load(&live_bytes));
}
