#include "cpu/pack.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/fp8.h"
#include "format/mxfp4.h"

enum { LANES = 8, TILE = 128, BLOCK = 32, LARGEST_MX_SCALE = 252 };

/* Adding 1.5 * 2^23 rounds a small float to the nearest even integer and leaves that integer in the low bits: a
 * rounding that every compiler can vectorise. */
#define ROUNDING 12582912.0f

static const char nonfinite[] = "expected finite weights, found a NaN or an infinity";

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The largest magnitude, as bits: magnitudes compare as their bits do, and anything not finite is at the top. */

static int32_t largest_f32(const uint32_t *x, size_t n)
{
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t magnitude = (int32_t)(x[i] & 0x7fffffffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static int16_t largest_bf16(const uint16_t *x, size_t n)
{
    int16_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int16_t magnitude = (int16_t)(x[i] & 0x7fff);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static uint8_t largest_fp8(const uint8_t *x, size_t n)
{
    uint8_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t magnitude = x[i] & 0x7f;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

mimo_pack_fault mimo_pack_f32(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    (void)scales;
    const uint32_t *from = (const void *)row->data;
    uint32_t *to = (uint32_t *)(void *)data + r;
    for (size_t k = 0; k < row->cols; k++)
        to[k * LANES] = from[k];
    return largest_f32(from, row->cols) < 0x7f800000 ? NULL : nonfinite;
}

mimo_pack_fault mimo_pack_bf16(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    (void)scales;
    const uint16_t *from = (const void *)row->data;
    uint16_t *to = (uint16_t *)(void *)data + r;
    for (size_t k = 0; k < row->cols; k++)
        to[k * LANES] = from[k];
    return largest_bf16(from, row->cols) < 0x7f80 ? NULL : nonfinite;
}

/* NULL, or what is wrong with the scales or the elements of an FP8 row. */
static mimo_pack_fault check_fp8(const mimo_pack_row *row)
{
    const float *scale = (const void *)row->scales;
    const size_t tiles = mimo_ceil_div(row->cols, TILE);
    for (size_t i = 0; i < tiles; i++)
        if (!(fabsf(scale[i]) <= FLT_MAX / 448.0f))
            return "expected finite FP8 scales whose products fit a float32, found a NaN, an infinity or a larger one";
    return largest_fp8(row->data, row->cols) < 0x7f ? NULL : "expected finite weights, found an FP8 NaN";
}

mimo_pack_fault mimo_pack_fp8(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    const mimo_pack_fault fault = check_fp8(row);
    if (fault != NULL)
        return fault;
    for (size_t k = 0; k < row->cols; k++)
        data[k * LANES + r] = row->data[k];
    const size_t tiles = mimo_ceil_div(row->cols, TILE);
    float *to = (float *)(void *)scales + r;
    for (size_t i = 0; i < tiles; i++)
        to[i * LANES] = ((const float *)(const void *)row->scales)[i];
    return NULL;
}

/* Four nibbles in the low half of a word to the low nibbles of its four bytes. */
static inline uint32_t spread(uint32_t nibbles)
{
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ffu;
    return (nibbles | nibbles << 4) & 0x0f0f0f0fu;
}

mimo_pack_fault mimo_pack_mxfp4(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    const size_t blocks = row->cols / BLOCK;
    uint8_t largest = 0;
    for (size_t block = 0; block < blocks; block++) {
        scales[block * LANES + r] = row->scales[block];
        largest = row->scales[block] > largest ? row->scales[block] : largest;
    }
    if (largest > LARGEST_MX_SCALE)
        return largest == MIMO_E8M0_NAN
                   ? "expected finite MXFP4 scales, found a NaN (code 255)"
                   : "expected MXFP4 scales up to code 252, whose products fit a float32, found a larger one";
    /* Eight elements are one word: elements 0..3 in the low nibbles of the result's bytes, 4..7 in the high ones. */
    uint32_t *to = (uint32_t *)(void *)data + r;
    for (size_t i = 0; i < row->cols / 8; i++) {
        uint32_t word;
        memcpy(&word, row->data + 4 * i, sizeof word);
        to[i * LANES] = spread(word & 0xffffu) | spread(word >> 16) << 4;
    }
    return NULL;
}

/* x[32], whose largest magnitude is `amax`, to lane r of block `block`. q = round(x / d); d is amax/127 rounded up to
 * BF16, so that |q| <= 127. */
static void store_q8(uint8_t *data, uint8_t *scales, const float x[BLOCK], float amax, size_t block, size_t r)
{
    const uint32_t code = (bits_of_float(amax / 127.0f) + 0xffffu) >> 16;
    const float d = amax > 0.0f ? float_of_bits(code << 16) : 1.0f;
    int8_t q[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        q[i] = (int8_t)(bits_of_float(x[i] / d + ROUNDING) & 0xffu);
    uint8_t *to = data + (block * BLOCK * LANES + r * 4);
    for (int g = 0; g < BLOCK / 4; g++)
        memcpy(to + g * 4 * LANES, q + 4 * g, 4);
    ((uint16_t *)(void *)scales)[block * LANES + r] = (uint16_t)code;
}

mimo_pack_fault mimo_pack_q8_of_f32(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    for (size_t block = 0; block < row->cols / BLOCK; block++) {
        const float *x = (const float *)(const void *)row->data + block * BLOCK;
        const int32_t largest = largest_f32((const void *)x, BLOCK);
        if (largest >= 0x7f800000)
            return nonfinite;
        store_q8(data, scales, x, float_of_bits((uint32_t)largest), block, r);
    }
    return NULL;
}

mimo_pack_fault mimo_pack_q8_of_bf16(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    for (size_t block = 0; block < row->cols / BLOCK; block++) {
        const uint16_t *codes = (const uint16_t *)(const void *)row->data + block * BLOCK;
        const int16_t largest = largest_bf16(codes, BLOCK);
        if (largest >= 0x7f80)
            return nonfinite;
        float x[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            x[i] = mimo_bf16_decode(codes[i]);
        store_q8(data, scales, x, mimo_bf16_decode((uint16_t)largest), block, r);
    }
    return NULL;
}

mimo_pack_fault mimo_pack_q8_of_fp8(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    const mimo_pack_fault fault = check_fp8(row);
    if (fault != NULL)
        return fault;
    float value[256];
    for (int code = 0; code < 256; code++)
        value[code] = mimo_fp8_decode((uint8_t)code);
    for (size_t block = 0; block < row->cols / BLOCK; block++) {
        const uint8_t *codes = row->data + block * BLOCK;
        const float scale = ((const float *)(const void *)row->scales)[block * BLOCK / TILE];
        float x[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            x[i] = value[codes[i]] * scale;
        store_q8(data, scales, x, value[largest_fp8(codes, BLOCK)] * fabsf(scale), block, r);
    }
    return NULL;
}

/* Four lanes by the compiler's own vectors, which it would not find by itself in sums of floats. */
typedef float four __attribute__((vector_size(16)));

enum { FOURS = BLOCK / 4 };

/* 16 even levels: value = step * code + least. */
typedef struct levels {
    uint16_t step, least; /* F16 */
    four code[FOURS];     /* 0 .. 15 */
} levels;

static float sum_of(four x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}

/* The least and the largest value of a block. */
static void find_range(float *lowest, float *highest, const uint16_t x[BLOCK])
{
    int16_t low = INT16_MAX, high = INT16_MIN; /* of the codes as integers that compare as the values do */
    for (int i = 0; i < BLOCK; i++) {
        const int16_t code = (int16_t)x[i], ordered = (int16_t)(code ^ ((code >> 15) & 0x7fff));
        low = ordered < low ? ordered : low;
        high = ordered > high ? ordered : high;
    }
    *lowest = mimo_bf16_decode((uint16_t)(low ^ ((low >> 15) & 0x7fff)));
    *highest = mimo_bf16_decode((uint16_t)(high ^ ((high >> 15) & 0x7fff)));
}

/* The line through (code, x) by least squares; codes by the distance from the least of x. Where the range has no
 * reciprocal the result is nothing near x. */
static void fit_levels(levels *out, const four x[FOURS], float lowest, float highest)
{
    const float apart = highest - lowest, steps = apart > 0.0f ? 15.0f / apart : 0.0f;
    four above = {0}, product = {0}, codes = {0}, squares = {0};
    for (int i = 0; i < FOURS; i++) {
        const four from_least = x[i] - lowest, code = (from_least * steps + ROUNDING) - ROUNDING;
        out->code[i] = code;
        above += from_least;
        product += from_least * code;
        codes += code;
        squares += code * code;
    }
    const float sum = sum_of(codes);
    const float spread = BLOCK * sum_of(squares) - sum * sum; /* exact; 0: all codes are the same */
    const float rise = BLOCK * sum_of(product) - sum * sum_of(above);
    const float step = spread > 0.0f ? rise / spread : 0.0f;
    out->step = mimo_f16_encode(step);
    out->least = mimo_f16_encode(lowest + (sum_of(above) - step * sum) / BLOCK);
}

/* Whether the squared error is at most that of rounding evenly spread values to Q8: a twelfth of a squared step each.
 */
static bool levels_are_near(const levels *l, const four x[FOURS], float amax)
{
    if ((l->step & MIMO_F16_INFINITY) == MIMO_F16_INFINITY || (l->least & MIMO_F16_INFINITY) == MIMO_F16_INFINITY)
        return false;
    if (amax == 0.0f)
        return true;
    const float step = mimo_f16_decode(l->step), least = mimo_f16_decode(l->least), q8_steps = 127.0f / amax;
    four squares = {0};
    for (int i = 0; i < FOURS; i++) {
        const four error = (step * l->code[i] + least - x[i]) * q8_steps;
        squares += error * error;
    }
    return sum_of(squares) <= BLOCK / 12.0f; /* false for a NaN */
}

/* False where 16 levels do not do. */
static bool find_levels(levels *out, const uint16_t codes[BLOCK])
{
    const int16_t largest = largest_bf16(codes, BLOCK);
    if (largest >= 0x7f80)
        return false;
    four x[FOURS];
    uint32_t bits[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        bits[i] = (uint32_t)codes[i] << 16;
    memcpy(x, bits, sizeof x);
    float lowest, highest;
    find_range(&lowest, &highest, codes);
    fit_levels(out, x, lowest, highest);
    return levels_are_near(out, x, mimo_bf16_decode((uint16_t)largest));
}

bool mimo_pack_has_levels(const uint16_t *x, size_t n)
{
    levels l;
    for (size_t i = 0; i < n; i += BLOCK)
        if (!find_levels(&l, x + i))
            return false;
    return true;
}

mimo_pack_fault mimo_pack_q4_of_bf16(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r)
{
    const uint16_t *from = (const uint16_t *)(const void *)row->data;
    for (size_t block = 0; block < row->cols / BLOCK; block++) {
        levels l;
        if (!find_levels(&l, from + block * BLOCK))
            return "expected blocks of 32 weights on 16 even levels, found other values";
        uint8_t *to = data + block * BLOCK / 2 * LANES + r * 4;
        for (int i = 0; i < FOURS / 2; i++)
            for (int b = 0; b < 4; b++)
                to[i * 4 * LANES + b] = (uint8_t)((int)l.code[2 * i][b] | (int)l.code[2 * i + 1][b] << 4);
        uint16_t *scale = (uint16_t *)(void *)scales + block * 2 * LANES + r;
        scale[0] = l.step;
        scale[LANES] = l.least;
    }
    return NULL;
}
