/* exp as every kernel computes it, on any machine, so that all of them give the same bits.
 *
 * x <= -87.33 gives 0, x >= 88.37 gives the value at 88.37. n = round-to-nearest-even(x * log2(e)); r = x - n*ln2 in
 * two steps (fma); exp(r) by the polynomial below (Horner, fma); the result is scaled by 2^n through the exponent bits.
 * Relative error < 2e-7. */
#ifndef MIMO_BASE_EXP_H
#define MIMO_BASE_EXP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/target.h"

#define MIMO_EXP_LOW (-87.33f)
#define MIMO_EXP_HIGH 88.37f
#define MIMO_EXP_LOG2E 1.44269504f
#define MIMO_EXP_LN2_HIGH 0.693145752f /* 0x1.62e4p-1: the product with |n| <= 128 is exact */
#define MIMO_EXP_LN2_LOW 1.42860677e-06f
/* exp(r) = 1 + r + r^2 * p(r) on |r| <= ln2/2; Taylor terms to r^7 leave less than half an ulp. */
#define MIMO_EXP_C2 0.5f
#define MIMO_EXP_C3 0.166666667f
#define MIMO_EXP_C4 0.0416666667f
#define MIMO_EXP_C5 0.00833333377f
#define MIMO_EXP_C6 0.00138888892f
#define MIMO_EXP_C7 0.000198412701f

static inline MIMO_HD float mimo_expf(float x)
{
    if (x <= MIMO_EXP_LOW)
        return 0.0f;
    x = x < MIMO_EXP_HIGH ? x : MIMO_EXP_HIGH;
    const float n = rintf(x * MIMO_EXP_LOG2E);
    float r = fmaf(n, -MIMO_EXP_LN2_HIGH, x);
    r = fmaf(n, -MIMO_EXP_LN2_LOW, r);
    float p = MIMO_EXP_C7;
    p = fmaf(p, r, MIMO_EXP_C6);
    p = fmaf(p, r, MIMO_EXP_C5);
    p = fmaf(p, r, MIMO_EXP_C4);
    p = fmaf(p, r, MIMO_EXP_C3);
    p = fmaf(p, r, MIMO_EXP_C2);
    p = fmaf(p, r * r, r);
    p = p + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

#define MIMO_EXP_ROUNDER 12582912.0f /* 1.5 * 2^23: x + it has round(x) in its low bits */

/* The sampler's, for x <= 0, without fma and rintf, which the baseline of x86-64 lacks: it becomes vectors on every
 * CPU. Relative error < 3e-7. */
static inline MIMO_HD float mimo_expf_negative(float x)
{
    const float clamped = x > MIMO_EXP_LOW ? x : MIMO_EXP_LOW;
    const float shifted = clamped * MIMO_EXP_LOG2E + MIMO_EXP_ROUNDER;
    const float n = shifted - MIMO_EXP_ROUNDER;
    const float r = (clamped - n * MIMO_EXP_LN2_HIGH) - n * MIMO_EXP_LN2_LOW;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23; /* what is above the integer in `shifted` leaves at the top */
    float power;
    memcpy(&power, &bits, sizeof power);
    return x > MIMO_EXP_LOW ? p * power : 0.0f;
}

#endif
