/* Narrow floats. */
#include "machine.h"

float ptx_f16(uint16_t bits)
{
    const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                            : exponent == 0 ? ldexpf((float)mantissa, -24)
                                            : ldexpf((float)(mantissa + 1024), (int)exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* f in units of 2^-(digits) of its binade, but no smaller ones than 2^least, to the nearest, ties to even. */
static double rounded(float f, int digits, int least)
{
    int exponent;
    (void)frexpf(f, &exponent);
    int unit = exponent - 1 - digits;
    unit = unit < least ? least : unit;
    return ldexp(nearbyint(ldexp((double)f, -unit)), unit);
}

uint16_t ptx_to_f16(float f)
{
    const uint16_t sign = signbit(f) ? 0x8000 : 0;
    if (isnan(f))
        return 0x7fff;
    const double value = isinf(f) ? (double)f : fabs(rounded(f, 10, -24));
    if (fabs(value) >= 65520.0)
        return sign | 0x7c00;
    if (value < 0x1p-14)
        return sign | (uint16_t)ldexp(value, 24);
    int exponent;
    const double fraction = frexp(value, &exponent); /* 0.5 .. 1 */
    return (uint16_t)(sign | (uint32_t)(exponent + 14) << 10 | ((uint32_t)ldexp(fraction, 11) & 1023));
}

float ptx_e4m3(uint8_t bits)
{
    const uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float magnitude = (bits & 127) == 127 ? NAN
                            : exponent == 0     ? ldexpf((float)mantissa, -9)
                                                : ldexpf((float)(mantissa + 8), (int)exponent - 10);
    return bits & 128 ? -magnitude : magnitude;
}

uint8_t ptx_to_e4m3(float f)
{
    const uint8_t sign = signbit(f) ? 0x80 : 0;
    if (isnan(f))
        return sign | 0x7f;
    const double value = isinf(f) ? 448.0 : fabs(rounded(f, 3, -9));
    if (value >= 448.0)
        return sign | 0x7e;
    if (value < 0x1p-6)
        return sign | (uint8_t)ldexp(value, 9);
    int exponent;
    const double fraction = frexp(value, &exponent);
    return (uint8_t)(sign | (uint32_t)(exponent + 6) << 3 | ((uint32_t)ldexp(fraction, 4) & 7));
}

uint32_t ptx_pair(char op, bool brain, uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t out = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const uint16_t x = (uint16_t)(a >> 16 * i), y = (uint16_t)(b >> 16 * i), z = (uint16_t)(c >> 16 * i);
        const double p = brain ? ptx_bf16(x) : ptx_f16(x), q = brain ? ptx_bf16(y) : ptx_f16(y);
        const double r = brain ? ptx_bf16(z) : ptx_f16(z);
        const float value = (float)(op == '*' ? p * q : op == '+' ? p + q : fma(p, q, r));
        out |= (uint32_t)(brain ? ptx_to_bf16(value) : ptx_to_f16(value)) << 16 * i;
    }
    return out;
}
