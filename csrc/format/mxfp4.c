#include "format/mxfp4.h"

#include <math.h>
#include <string.h>

/* 7 * 2^e: above it, the next larger scale holds the largest value of a block better (8 instead of 6). */
#define STEP_UP 7.0f
/* Largest scale code used: 6 * 2^(252-127) is the largest product that a float holds. */
enum { LARGEST_SCALE = 252, ONE_SCALE = 127 };

static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float mimo_e2m1_decode(uint8_t code)
{
    const float magnitude = (float)doubled[code & 7] * 0.5f;
    return code & 8 ? -magnitude : magnitude;
}

int mimo_e2m1_doubled(uint8_t code)
{
    return doubled[code & 15];
}

/* Code of a magnitude: how many of the midpoints between neighbours it passes. A midpoint itself goes to the even code,
 * so it counts as passed where the upper code is even. A sum of comparisons has no branch and vectorises. */
static inline int32_t magnitude_code(float a)
{
    return (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
}

/* Twice the value of that code, from the same comparisons: the step at each midpoint. */
static inline int32_t magnitude_doubled(float a)
{
    return (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + 2 * ((a > 2.5f) + (a >= 3.5f)) + 4 * (a > 5.0f);
}

uint8_t mimo_e2m1_encode(float value)
{
    return (uint8_t)(magnitude_code(fabsf(value)) | (int32_t)(bits_of_float(value) >> 31 << 3));
}

float mimo_e8m0_decode(uint8_t code)
{
    if (code == MIMO_E8M0_NAN)
        return float_of_bits(0x7fc00000u);
    return float_of_bits(code == 0 ? 0x00400000u : (uint32_t)code << 23);
}

/* 2^-(scale - 127), a normal float for every scale up to LARGEST_SCALE. */
static float inverse_scale(int scale)
{
    return float_of_bits((uint32_t)(254 - scale) << 23);
}

/* Squared error of the block at one scale, in units of that scale squared. Each difference is exact in float (the
 * values are below 16, and either within a factor 2 of the code's value or a multiple of 2^-20), its square is exact in
 * double. */
static double scaled_error(const float values[32], float inverse)
{
    float difference[32];
    for (int i = 0; i < MIMO_MX_BLOCK; i++) {
        const float a = fabsf(values[i]) * inverse;
        difference[i] = a - (float)magnitude_doubled(a) * 0.5f;
    }
    double lane[4] = {0.0, 0.0, 0.0, 0.0};
    for (int i = 0; i < MIMO_MX_BLOCK; i += 4)
        for (int j = 0; j < 4; j++)
            lane[j] += (double)difference[i + j] * (double)difference[i + j];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

/* Let s0 = 2^(floor(log2 amax) - 2), so that 4 s0 <= amax < 8 s0. The best scale is s0/2, s0 or 2 s0:
 *  - s0/4 loses to s0/2. With s = s0/4, amax >= 16 s: it is off by at least 10 s against 4 s (84 s^2 more, and the gap
 *    grows with amax); every other value is off by at most 1 s at scale 2 s if it is below 6 s, and no further than at
 * s otherwise, so 31 values win back at most 31 s^2.
 *  - 4 s0 loses to 2 s0, and 2 s0 to s0 unless amax > 7 s0: below 8 s0 (7 s0) each value the coarser grid can give, the
 *    finer one has too. */
static int best_scale(const float values[32], float amax)
{
    const int exponent = (int)(bits_of_float(amax) >> 23);
    const int middle = exponent > 2 ? exponent - 2 : 0;
    const float a = amax * inverse_scale(middle);
    double least = scaled_error(values, inverse_scale(middle));
    int best = middle;
    /* At s0/2 the largest value alone is off by amax - 3 s0: most blocks need not be tried. */
    const double saturated = (double)a - 3.0;
    if (middle > 0 && saturated * saturated <= least) {
        const double error = 0.25 * scaled_error(values, inverse_scale(middle - 1));
        if (error <= least) {
            least = error;
            best = middle - 1;
        }
    }
    if (a > STEP_UP && middle < LARGEST_SCALE && 4.0 * scaled_error(values, inverse_scale(middle + 1)) < least)
        best = middle + 1;
    return best;
}

static void encode_block(uint8_t codes[16], uint8_t *scale, const float values[32])
{
    int32_t largest = 0; /* magnitudes compare as their bits do */
    for (int i = 0; i < MIMO_MX_BLOCK; i++) {
        const int32_t bits = (int32_t)(bits_of_float(values[i]) & 0x7fffffffu);
        largest = bits > largest ? bits : largest;
    }
    if (largest == 0) {
        memset(codes, 0, MIMO_MX_BLOCK / 2);
        *scale = ONE_SCALE;
        return;
    }
    const int best = best_scale(values, float_of_bits((uint32_t)largest));
    const float inverse = inverse_scale(best);
    int32_t code[32];
    for (int i = 0; i < MIMO_MX_BLOCK; i++)
        code[i] = magnitude_code(fabsf(values[i]) * inverse) | (int32_t)(bits_of_float(values[i]) >> 31 << 3);
    for (int i = 0; i < MIMO_MX_BLOCK / 2; i++)
        codes[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
    *scale = (uint8_t)best;
}

void mimo_mxfp4_encode(uint8_t *codes, uint8_t *scales, const float *values, size_t rows, size_t cols)
{
    const size_t blocks = rows * (cols / MIMO_MX_BLOCK);
    for (size_t block = 0; block < blocks; block++)
        encode_block(codes + block * (MIMO_MX_BLOCK / 2), scales + block, values + block * MIMO_MX_BLOCK);
}

void mimo_mxfp4_decode(float *values, const uint8_t *codes, const uint8_t *scales, size_t rows, size_t cols)
{
    const size_t blocks = rows * (cols / MIMO_MX_BLOCK);
    for (size_t block = 0; block < blocks; block++) {
        const float scale = mimo_e8m0_decode(scales[block]);
        float value[16];
        for (uint8_t code = 0; code < 16; code++)
            value[code] = mimo_e2m1_decode(code) * scale;
        for (size_t i = 0; i < MIMO_MX_BLOCK / 2; i++) {
            const uint8_t pair = codes[block * (MIMO_MX_BLOCK / 2) + i];
            values[block * MIMO_MX_BLOCK + 2 * i] = value[pair & 15];
            values[block * MIMO_MX_BLOCK + 2 * i + 1] = value[pair >> 4];
        }
    }
}
