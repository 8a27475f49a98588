/* The keys and values of sequences on the GPU: rings that each of 40 sequences has, and chunks of 256 positions from
 * one pool. Nothing is allocated here but small tables of the host. */
#ifndef MIMO_CUDA_KV_H
#define MIMO_CUDA_KV_H

#include "cuda/device.h"
#include "cuda/memory.h"
#include "plan/backend.h"
#include "plan/span.h"

typedef struct mimo_cuda_pool {
    mimo_cuda_device *device;
    const mimo_cuda_memory *memory;
    uint64_t rings, tables, chunks; /* addresses: [sequences] both rings, both tables; the chunks, pair by pair */
    uint32_t *free_chunk;           /* [free_chunks] */
    size_t free_chunks;
    uint32_t free_sequence[MIMO_CUDA_SEQUENCES];
    size_t free_sequences;
    size_t ring[2]; /* positions */
} mimo_cuda_pool;

/* A mimo_kv of this backend. */
typedef struct mimo_cuda_sequence {
    uint32_t number;
    uint32_t *chunk; /* [chunks] numbers of the pool's; room for memory->chunk_slots */
    size_t chunks;
    size_t written;    /* one past the last position that any step wrote */
    mimo_kv_span span; /* of the drafter */
} mimo_cuda_sequence;

/* All sequences and chunks are free. */
MIMO_MUST_CHECK mimo_status mimo_cuda_pool_open(mimo_cuda_pool *pool, mimo_cuda_device *device,
                                                const mimo_cuda_memory *memory, mimo_error *err);
void mimo_cuda_pool_close(mimo_cuda_pool *pool);

/* What plan/backend.h says of kv_open, kv_reserve, kv_trim, kv_copy and kv_close. */
MIMO_MUST_CHECK mimo_status mimo_cuda_sequence_open(mimo_cuda_pool *pool, mimo_cuda_sequence **out, mimo_error *err);
MIMO_MUST_CHECK mimo_status mimo_cuda_sequence_reserve(mimo_cuda_pool *pool, mimo_cuda_sequence *sequence,
                                                       size_t positions, mimo_error *err);
void mimo_cuda_sequence_trim(mimo_cuda_pool *pool, mimo_cuda_sequence *sequence, size_t positions);
void mimo_cuda_sequence_copy(mimo_cuda_pool *pool, mimo_cuda_sequence *to, const mimo_cuda_sequence *from,
                             size_t positions);
void mimo_cuda_sequence_close(mimo_cuda_pool *pool, mimo_cuda_sequence *sequence);

/* Where kernels find the sequence's keys and values: the target's (0) or the drafter's (1). */
mimo_cuda_kv mimo_cuda_sequence_kv(const mimo_cuda_pool *pool, const mimo_cuda_sequence *sequence, int which);
/* The address of the target's keys and values of positions from 0 on, of full layers (MIMO_FULL) or sliding ones. */
uint64_t mimo_cuda_sequence_first(const mimo_cuda_pool *pool, const mimo_cuda_sequence *sequence, uint32_t kind);

#endif
