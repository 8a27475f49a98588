/* Values made up in memory: weights, scales, keys and values that a benchmark reads in the place of a model's.
 *
 * A word of 32 bits is a pure function of (seed, number of the fill, where it is), whatever grid writes it. Values are
 * finite and of about the size asked for: MXFP4 and FP8 codes without NaN, scales that fit them. */
#ifndef MIMO_CUDA_OP_FILL_H
#define MIMO_CUDA_OP_FILL_H

#include "cuda/op/noise.h"

typedef enum mimo_fill_kind {
    MIMO_FILL_MXFP4,    /* any code of E2M1: of root mean square 2.93 */
    MIMO_FILL_MXSCALE,  /* E8M0: the power of two at or below `size`, or half of it */
    MIMO_FILL_FP8,      /* E4M3 below 2 in magnitude: of root mean square 0.6 */
    MIMO_FILL_FP8SCALE, /* float, [size, 1.25 size) */
    MIMO_FILL_BF16,     /* [-size, size), evenly */
    MIMO_FILL_F32,      /* likewise */
    MIMO_FILL_TILE,     /* uint32: its own index / 128: rows of a scale grid */
} mimo_fill_kind;

/* Rows of values, `stride` bytes from one to the next, each `bytes` long and then zeros up to `room`. to, stride:
 * of 16.
 */
typedef struct mimo_fill {
    uint8_t *to;
    uint64_t rows, stride, bytes, room;
    uint64_t seed;
    uint32_t number; /* of the fill: others have other values */
    uint32_t kind;   /* mimo_fill_kind */
    float size;
} mimo_fill;

enum { MIMO_FILL_GRAIN = 16, MIMO_FILL_TILE_GRAINS = 4096 };

static inline MIMO_HD uint64_t mimo_fill_grains(const mimo_fill *fill)
{
    return fill->rows * ((fill->room + MIMO_FILL_GRAIN - 1) / MIMO_FILL_GRAIN);
}

#ifdef __cplusplus

MIMO_BODY inline uint32_t mimo_fill_bits(float x)
{
    union {
        float f;
        uint32_t u;
    } both = {x};
    return both.u;
}

/* The BF16 of 16 random bits. */
MIMO_BODY inline uint32_t mimo_fill_bf16(uint32_t random, float size)
{
    return mimo_fill_bits((float)(int32_t)(int16_t)random * 0x1p-15f * size) >> 16;
}

/* The word at byte 4 * index of a row. */
MIMO_BODY inline uint32_t mimo_fill_word(const mimo_fill &fill, uint32_t random, uint64_t index)
{
    switch (fill.kind) {
    case MIMO_FILL_MXFP4:
        return random;
    case MIMO_FILL_MXSCALE:
        return (mimo_fill_bits(fill.size) >> 23) * 0x01010101u - (random & 0x01010101u);
    case MIMO_FILL_FP8:
        return random & 0xbfbfbfbfu;
    case MIMO_FILL_FP8SCALE:
        return mimo_fill_bits(fill.size + fill.size * 0.25f * ((float)(random >> 8) * 0x1p-24f));
    case MIMO_FILL_BF16:
        return mimo_fill_bf16(random, fill.size) | mimo_fill_bf16(random >> 16, fill.size) << 16;
    case MIMO_FILL_F32:
        return mimo_fill_bits((float)((int32_t)random >> 8) * 0x1p-23f * fill.size);
    default:
        return (uint32_t)(index / 128);
    }
}

/* 16 bytes, or what is left of a row. */
MIMO_BODY inline void mimo_fill_grain(const mimo_fill &fill, uint64_t grain)
{
    const uint64_t grains = (fill.room + MIMO_FILL_GRAIN - 1) / MIMO_FILL_GRAIN;
    const uint64_t row = grain / grains, at = grain % grains * MIMO_FILL_GRAIN;
    const uint32_t key[2] = {(uint32_t)fill.seed, (uint32_t)(fill.seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)grain, (uint32_t)(grain >> 32), fill.number, fill.kind};
    struct alignas(MIMO_FILL_GRAIN) grain_type {
        uint32_t word[4];
    } value;
    mimo_cuda_philox(value.word, key, counter);
    for (uint32_t i = 0; i < 4; i++)
        value.word[i] = mimo_fill_word(fill, value.word[i], at / 4 + i);
    uint8_t *to = fill.to + row * fill.stride + at;
    if (at + MIMO_FILL_GRAIN <= fill.bytes) {
        *reinterpret_cast<grain_type *>(to) = value;
        return;
    }
    for (uint32_t i = 0; i < MIMO_FILL_GRAIN && at + i < fill.room; i++)
        to[i] = at + i < fill.bytes ? (uint8_t)(value.word[i / 4] >> 8 * (i % 4)) : 0;
}

/* CTA `cta`'s share of `ctas`. */
template <class Team>
MIMO_BODY inline void mimo_fill_run(const Team &team, const mimo_fill &fill, uint32_t cta, uint32_t ctas)
{
    const uint64_t grains = mimo_fill_grains(&fill);
    for (uint64_t first = (uint64_t)cta * MIMO_FILL_TILE_GRAINS; first < grains;
         first += (uint64_t)ctas * MIMO_FILL_TILE_GRAINS) {
        const uint64_t left = grains - first;
        team.threads(left < MIMO_FILL_TILE_GRAINS ? (uint32_t)left : (uint32_t)MIMO_FILL_TILE_GRAINS,
                     [&](uint32_t i) { mimo_fill_grain(fill, first + i); });
    }
}

#ifdef __CUDACC__
/* The kernel, in each module that fills. */
#define MIMO_FILL_KERNEL(threads)                                                                                      \
    extern "C" __global__ void __launch_bounds__(threads) mimo_fill_values(const __grid_constant__ mimo_fill fill)     \
    {                                                                                                                  \
        const mimo_cta_team team = {nullptr, 0, threads, 0};                                                           \
        mimo_fill_run(team, fill, blockIdx.x, gridDim.x);                                                              \
    }
#endif

#endif

#endif
