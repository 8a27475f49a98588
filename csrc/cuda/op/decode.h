/* Weights and cached elements as floats, in registers: eight of a row at a time.
 *
 * Bit tricks in plain integers, so that a test on the host covers them: the device only has other names for some. */
#ifndef MIMO_CUDA_OP_DECODE_H
#define MIMO_CUDA_OP_DECODE_H

#include <string.h>

#include "base/target.h"
#include "cuda/op/state.h"
#include "format/bf16.h"
#include "model/weights.h"

/* Aligned so that a device reads each in one piece. */
struct alignas(8) mimo_words2 {
    uint32_t v[2];
};
struct alignas(16) mimo_words4 {
    uint32_t v[4];
};

template <class T> MIMO_HD inline T mimo_cuda_load(const void *from)
{
#ifdef __CUDA_ARCH__
    return *static_cast<const T *>(from);
#else
    T value;
    memcpy(&value, from, sizeof value);
    return value;
#endif
}

MIMO_HD inline float mimo_cuda_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

MIMO_HD inline uint32_t mimo_cuda_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* E4M3: exponent and mantissa in a float's place, times 2^120, which puts the exponent right and makes subnormals
 * normal. NaN codes are not among weights. */
MIMO_HD inline float mimo_cuda_e4m3(uint32_t code)
{
    return mimo_cuda_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
}

/* E2M1 in the low four bits, likewise. */
MIMO_HD inline float mimo_cuda_e2m1(uint32_t code)
{
    return mimo_cuda_float((code & 8) << 28 | (code & 7) << 22) * 0x1p126f;
}

/* 2^(code - 127); no NaN among weights. */
MIMO_HD inline float mimo_cuda_e8m0(uint32_t code)
{
    return mimo_cuda_float(code == 0 ? 0x00400000u : code << 23);
}

/* ---- for tensor cores: eight codes, low nibble first ---- */

/* Elements n and n + 4 of eight E2M1 codes as two BF16 (n in the low half), each times 2^-126: multiplying by
 * mimo_cuda_e2m1_bf16_scale gives the weights. A factor that flushes subnormals would lose them. */
MIMO_HD inline uint32_t mimo_cuda_e2m1_bf16x2(uint32_t codes, uint32_t n)
{
    const uint32_t at_top = codes << (12 - 4 * n);
    return (at_top & 0x80008000u) | (at_top >> 6 & 0x01c001c0u);
}

/* BF16 of 2^126 times the block's scale, for scales up to 2^1 (code 128): the largest factor that a BF16 holds. */
enum { MIMO_CUDA_LARGEST_BF16_SCALE = 128 };

MIMO_HD inline uint16_t mimo_cuda_e2m1_bf16_scale(uint32_t code)
{
    return (uint16_t)((code + 126) << 7);
}

/* Bytes of `low` (0 .. 3) and `high` (4 .. 7) by the selector's nibbles; with bit 3 set, a byte's sign in all its bits:
 * what PTX calls prmt. */
MIMO_HD inline uint32_t mimo_cuda_permute(uint32_t low, uint32_t high, uint32_t selector)
{
#ifdef __CUDA_ARCH__
    return __byte_perm(low, high, selector);
#else
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t pick = selector >> 4 * i & 15, word = pick & 4 ? high : low, byte = word >> 8 * (pick & 3) & 255;
        out |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return out;
#endif
}

/* Elements n and n + 4 of eight E4M3 codes as two BF16, each times 2^-120. */
MIMO_HD inline uint32_t mimo_cuda_e4m3_bf16x2(const mimo_words2 &codes, uint32_t n)
{
    /* Byte n of either word at the top of a half. */
    const uint32_t at_top = mimo_cuda_permute(codes.v[0], codes.v[1], n << 4 | (4 + n) << 12) & 0xff00ff00u;
    return (at_top & 0x80008000u) | (at_top >> 4 & 0x07f007f0u);
}

/* E4M3 has room for E2M1 times 2^-5 .. 2^6, so that differences between the scales of blocks fold into the table. */
enum { MIMO_CUDA_FOLD_LEAST = 1, MIMO_CUDA_FOLD_MOST = 12 };

/* Eight E2M1 codes as eight E4M3, out[0] the first four, each times 2^(fold - 6). */
MIMO_HD inline void mimo_cuda_e2m1_e4m3x8(uint32_t out[2], uint32_t codes, uint32_t fold)
{
    const uint32_t low = fold * 0x08080800u + 0x0c080000u, high = fold * 0x08080808u + 0x1c181410u;
    const uint32_t magnitude = codes & 0x77777777u, even_signs = codes << 4;
    out[0] = mimo_cuda_permute(low, high, magnitude & 0xffffu);
    out[1] = mimo_cuda_permute(low, high, magnitude >> 16);
    out[0] |= mimo_cuda_permute(even_signs, codes, 0xd9c8u) & 0x80808080u;
    out[1] |= mimo_cuda_permute(even_signs, codes, 0xfbeau) & 0x80808080u;
}

/* ---- units ---- */

/* One stored row of a matrix. */
struct mimo_cuda_row {
    const uint8_t *data;
    const void *scales;
};

MIMO_HD inline mimo_cuda_row mimo_cuda_row_of(const mimo_cuda_matrix &w, uint32_t row)
{
    mimo_cuda_row r = {w.data + row * w.row_bytes, nullptr};
    if (w.format == MIMO_FORMAT_MXFP4)
        r.scales = static_cast<const uint8_t *>(w.scales) + (size_t)row * (w.cols / 32);
    else if (w.format == MIMO_FORMAT_FP8)
        r.scales = static_cast<const float *>(w.scales) + (size_t)w.scale_row[row] * ((w.cols + 127) / 128);
    return r;
}

/* Elements [8 * unit, 8 * unit + 8) of a row. Each is rounded at most once: FP8 times its scale. */
template <uint32_t format> MIMO_HD inline void mimo_cuda_weights(float w[8], const mimo_cuda_row &row, uint32_t unit)
{
    if constexpr (format == MIMO_FORMAT_F32) {
        for (uint32_t i = 0; i < 2; i++) {
            const mimo_words4 words = mimo_cuda_load<mimo_words4>(row.data + 32 * (size_t)unit + 16 * i);
            for (uint32_t j = 0; j < 4; j++)
                w[4 * i + j] = mimo_cuda_float(words.v[j]);
        }
    } else if constexpr (format == MIMO_FORMAT_BF16) {
        const mimo_words4 words = mimo_cuda_load<mimo_words4>(row.data + 16 * (size_t)unit);
        for (uint32_t i = 0; i < 8; i++)
            w[i] = mimo_bf16_decode((uint16_t)(words.v[i / 2] >> 16 * (i % 2)));
    } else if constexpr (format == MIMO_FORMAT_FP8) {
        const mimo_words2 words = mimo_cuda_load<mimo_words2>(row.data + 8 * (size_t)unit);
        const float scale = static_cast<const float *>(row.scales)[unit / 16];
        for (uint32_t i = 0; i < 8; i++)
            w[i] = mimo_cuda_e4m3(words.v[i / 4] >> 8 * (i % 4) & 255) * scale;
    } else {
        const uint32_t codes = mimo_cuda_load<uint32_t>(row.data + 4 * (size_t)unit);
        const float scale = mimo_cuda_e8m0(static_cast<const uint8_t *>(row.scales)[unit / 4]);
        for (uint32_t i = 0; i < 8; i++)
            w[i] = mimo_cuda_e2m1(codes >> 4 * i & 15) * scale;
    }
}

/* Eight floats of an activation row. */
MIMO_HD inline void mimo_cuda_floats(float x[8], const float *from)
{
    mimo_cuda_weights<MIMO_FORMAT_F32>(x, {reinterpret_cast<const uint8_t *>(from), nullptr}, 0);
}

#endif
