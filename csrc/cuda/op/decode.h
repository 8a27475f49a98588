/* Weights and cached elements as floats, in registers: eight of a row at a time.
 *
 * Bit tricks in plain integers, so that a test on the host covers them: the device only has other names for some. */
#ifndef MIMO_CUDA_OP_DECODE_H
#define MIMO_CUDA_OP_DECODE_H

#include <math.h>
#include <string.h>

#include "base/target.h"
#include "cuda/op/state.h"
#include "cuda/page.h"
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

/* How many bits are set. */
MIMO_HD inline uint32_t mimo_cuda_ones(uint32_t bits)
{
#ifdef __CUDA_ARCH__
    return (uint32_t)__popc(bits);
#else
    return (uint32_t)__builtin_popcount(bits);
#endif
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

/* ---- for tensor cores: words of a page (page.h), two elements at a time ---- */

/* A word turned to the right. */
MIMO_HD inline uint32_t mimo_cuda_turn(uint32_t word, uint32_t n)
{
#ifdef __CUDA_ARCH__
    return __funnelshift_r(word, word, n);
#else
    return word >> n | word << (32 - n) % 32;
#endif
}

/* Bits of `a` where the mask has ones, else those of `b`; compilers make two operations of it. */
MIMO_HD inline uint32_t mimo_cuda_choose(uint32_t mask, uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(out) : "r"(mask), "r"(a), "r"(b));
    return out;
#else
    return (a & mask) | (b & ~mask);
#endif
}

/* Elements n and n + 4 of a group of E2M1 codes, of row g or g + 8 (`upper`), as two BF16 (n in the low half), each
 * times 2^-126: multiplying by a power of two gives the weights. A factor that flushes subnormals would lose them. A
 * turn of which no bit comes round is a shift to the left, which a device has more of. */
MIMO_HD inline uint32_t mimo_cuda_e2m1_bf16x2(const mimo_words2 &words, uint32_t upper, uint32_t n)
{
    const uint32_t rest = mimo_cuda_choose(MIMO_PAGE_REST, words.v[0], words.v[1] << MIMO_PAGE_REST_UP);
    const uint32_t word = n == 3 ? rest : words.v[upper], turn = mimo_page_turn(upper, n);
    return (turn >= 26 ? word << (32 - turn) : mimo_cuda_turn(word, turn)) & 0x81c081c0u;
}

/* Elements n and n + 4 of a group of eight E4M3 codes as two BF16, each times 2^-120. */
MIMO_HD inline uint32_t mimo_cuda_e4m3_bf16x2(const mimo_words2 &words, uint32_t n)
{
    const uint32_t word = words.v[n / 2];
    return n % 2 == 0 ? (word & 0x80008000u) | (word >> 4 & 0x07f007f0u)
                      : (word << 8 & 0x80008000u) | (word << 4 & 0x07f007f0u);
}

/* ---- the same for products in E4M3 ---- */

/* Byte n of the result is that of eight bytes that bits 4 n .. 4 n + 3 number, which is below 8. */
MIMO_HD inline uint32_t mimo_cuda_pick(const mimo_words2 &bytes, uint32_t numbers)
{
#ifdef __CUDA_ARCH__
    uint32_t out; /* the intrinsic would make sure of the numbers */
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(bytes.v[0]), "r"(bytes.v[1]), "r"(numbers));
    return out;
#else
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t number = numbers >> 4 * i & 7;
        out |= (bytes.v[number / 4] >> 8 * (number % 4) & 255) << 8 * i;
    }
    return out;
#endif
}

/* E4M3 of the eight magnitudes of E2M1, times 2^(scale - 6); scale: 1 .. 12. (Of scale 0 only that of zero is right.)
 */
MIMO_HD inline mimo_words2 mimo_cuda_e4m3_table(uint32_t scale)
{
    return {{scale * 0x08080800u + 0x0c080000u, scale * 0x08080808u + 0x1c181410u}};
}

/* Elements 4 n .. 4 n + 3 of a group of eight E2M1 codes (mimo_page_e4m3_codes) as four E4M3. */
MIMO_HD inline uint32_t mimo_cuda_e2m1_e4m3x4(uint32_t word, uint32_t n, const mimo_words2 &table)
{
    const uint32_t magnitudes = word & 0x77777777u;
    return mimo_cuda_pick(table, magnitudes >> 16 * n) | ((n == 0 ? word : word << 4) & 0x80808080u);
}

/* To the nearest E4M3, even ones between two; beyond 448 that. */
MIMO_HD inline float mimo_cuda_round_e4m3(float x)
{
    const uint32_t exponent = mimo_cuda_bits(x) >> 23 & 255, least = 127 - 6;
    const float unit = mimo_cuda_float(((exponent > least ? exponent : least) - 3) << 23);
    const float rounded = rintf(x / unit) * unit;
    return rounded > 448.0f ? 448.0f : rounded < -448.0f ? -448.0f : rounded;
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
