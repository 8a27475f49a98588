#include "cuda/kv.h"

#include "base/alloc.h"
#include "base/size.h"

mimo_status mimo_cuda_pool_open(mimo_cuda_pool *pool, mimo_cuda_device *device, const mimo_cuda_memory *memory,
                                mimo_error *err)
{
    *pool = (mimo_cuda_pool){.device = device, .memory = memory};
    MIMO_TRY(mimo_alloc_array(&pool->free_chunk, memory->chunks, sizeof *pool->free_chunk, "KV chunks", err));
    for (; pool->free_chunks < memory->chunks; pool->free_chunks++) /* the first ones are taken first */
        pool->free_chunk[pool->free_chunks] = (uint32_t)(memory->chunks - 1 - pool->free_chunks);
    for (; pool->free_sequences < MIMO_CUDA_SEQUENCES; pool->free_sequences++)
        pool->free_sequence[pool->free_sequences] = (uint32_t)(MIMO_CUDA_SEQUENCES - 1 - pool->free_sequences);
    return MIMO_OK;
}

void mimo_cuda_pool_close(mimo_cuda_pool *pool)
{
    mimo_free(pool->free_chunk);
    pool->free_chunk = NULL;
}

mimo_status mimo_cuda_sequence_open(mimo_cuda_pool *pool, mimo_cuda_sequence **out, mimo_error *err)
{
    if (pool->free_sequences == 0)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM,
                         "out of memory: the GPU holds the caches of %d sequences, and all are used",
                         MIMO_CUDA_SEQUENCES);
    mimo_cuda_sequence *sequence;
    MIMO_TRY(mimo_alloc_array(&sequence, 1, sizeof *sequence, "KV cache", err));
    const mimo_status status =
        mimo_alloc_array(&sequence->chunk, pool->memory->chunk_slots, sizeof *sequence->chunk, "KV chunk table", err);
    if (status != MIMO_OK) {
        mimo_free(sequence);
        return status;
    }
    sequence->number = pool->free_sequence[--pool->free_sequences];
    *out = sequence;
    return MIMO_OK;
}

void mimo_cuda_sequence_close(mimo_cuda_pool *pool, mimo_cuda_sequence *sequence)
{
    if (sequence == NULL)
        return;
    mimo_cuda_sequence_trim(pool, sequence, 0);
    pool->free_sequence[pool->free_sequences++] = sequence->number;
    mimo_free(sequence->chunk);
    mimo_free(sequence);
}

static size_t chunks_of(const mimo_cuda_pool *pool, size_t positions)
{
    const mimo_cuda_memory *m = pool->memory;
    if (m->chunk[0] + m->chunk[1] == 0)
        return 0;
    /* a block may begin at the last position */
    return mimo_ceil_div(positions + (m->chunk[1] > 0 && positions > 0 ? MIMO_MAX_BLOCK - 1 : 0), MIMO_CUDA_CHUNK);
}

static uint64_t chunk_address(const mimo_cuda_pool *pool, uint32_t number, int which)
{
    const mimo_cuda_memory *m = pool->memory;
    return pool->chunks + number * (m->chunk[0] + m->chunk[1]) + (which == 1 ? m->chunk[0] : 0);
}

static uint64_t table_address(const mimo_cuda_pool *pool, uint32_t sequence, int which)
{
    const mimo_cuda_memory *m = pool->memory;
    return pool->tables + sequence * (m->table[0] + m->table[1]) + (which == 1 ? m->table[0] : 0);
}

static uint64_t ring_address(const mimo_cuda_pool *pool, uint32_t sequence, int which)
{
    const mimo_cuda_memory *m = pool->memory;
    return pool->rings + sequence * (m->ring[0] + m->ring[1]) + (which == 1 ? m->ring[0] : 0);
}

/* Tells the device of chunks [first, chunks) of the sequence. */
static mimo_status write_table(mimo_cuda_pool *pool, const mimo_cuda_sequence *sequence, size_t first, mimo_error *err)
{
    enum { AT_ONCE = 256 };
    for (int which = 0; which < 2; which++)
        for (size_t i = first; pool->memory->table[which] > 0 && i < sequence->chunks; i += AT_ONCE) {
            uint64_t entry[AT_ONCE] = {0};
            const size_t n = mimo_min(AT_ONCE, sequence->chunks - i);
            for (size_t k = 0; k < n; k++)
                entry[k] = chunk_address(pool, sequence->chunk[i + k], which);
            MIMO_TRY(mimo_cuda_write(pool->device, table_address(pool, sequence->number, which) + i * sizeof *entry,
                                     entry, n * sizeof *entry, err));
        }
    return MIMO_OK;
}

mimo_status mimo_cuda_sequence_reserve(mimo_cuda_pool *pool, mimo_cuda_sequence *sequence, size_t positions,
                                       mimo_error *err)
{
    const size_t had = sequence->chunks, chunks = chunks_of(pool, positions);
    if (chunks <= had)
        return MIMO_OK;
    if (chunks > pool->memory->chunk_slots || chunks - had > pool->free_chunks)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM,
                         "out of memory: %zu positions need %zu more chunks of keys and values on the GPU, and %zu are "
                         "free",
                         positions, chunks - had, pool->free_chunks);
    while (sequence->chunks < chunks)
        sequence->chunk[sequence->chunks++] = pool->free_chunk[--pool->free_chunks];
    const mimo_status status = write_table(pool, sequence, had, err);
    while (status != MIMO_OK && sequence->chunks > had)
        pool->free_chunk[pool->free_chunks++] = sequence->chunk[--sequence->chunks];
    return status;
}

void mimo_cuda_sequence_trim(mimo_cuda_pool *pool, mimo_cuda_sequence *sequence, size_t positions)
{
    const size_t chunks = chunks_of(pool, positions);
    while (sequence->chunks > chunks)
        pool->free_chunk[pool->free_chunks++] = sequence->chunk[--sequence->chunks];
}

void mimo_cuda_sequence_copy(mimo_cuda_pool *pool, mimo_cuda_sequence *to, const mimo_cuda_sequence *from,
                             size_t positions)
{
    const mimo_cuda_memory *m = pool->memory;
    for (size_t i = 0; i < mimo_min(mimo_ceil_div(positions, MIMO_CUDA_CHUNK), from->chunks); i++)
        mimo_cuda_queue_over(pool->device, chunk_address(pool, to->chunk[i], 0), chunk_address(pool, from->chunk[i], 0),
                             m->chunk[0] + m->chunk[1]);
    mimo_cuda_queue_over(pool->device, ring_address(pool, to->number, 0), ring_address(pool, from->number, 0),
                         m->ring[0] + m->ring[1]);
    to->written = from->written;
    to->span = from->span;
    mimo_span_cut(&to->span, pool->ring[1], positions);
}

mimo_cuda_kv mimo_cuda_sequence_kv(const mimo_cuda_pool *pool, const mimo_cuda_sequence *sequence, int which)
{
    return (mimo_cuda_kv){.chunk = (uint8_t *const *)(uintptr_t)table_address(pool, sequence->number, which),
                          .ring = (uint8_t *)(uintptr_t)ring_address(pool, sequence->number, which)};
}

uint64_t mimo_cuda_sequence_first(const mimo_cuda_pool *pool, const mimo_cuda_sequence *sequence, uint32_t kind)
{
    return kind == MIMO_SLIDING ? ring_address(pool, sequence->number, 0) : chunk_address(pool, sequence->chunk[0], 0);
}
