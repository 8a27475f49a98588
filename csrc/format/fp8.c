#include "format/fp8.h"

#include <math.h>
#include <string.h>

/* Exponent biases: 7 here, 127 in a float. Codes below 8 are subnormal: multiples of 2^-9. */
enum { BIAS_GAP = 127 - 7, NAN_CODE = 0x7f, LARGEST_CODE = 0x7e, SMALLEST_NORMAL_CODE = 8 };

float mimo_fp8_decode(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80) << 24;
    const uint32_t magnitude = code & 0x7f;
    uint32_t bits;
    if (magnitude == NAN_CODE) {
        bits = 0x7fc00000u;
    } else if (magnitude < SMALLEST_NORMAL_CODE) {
        const float value = (float)magnitude * 0x1p-9f;
        memcpy(&bits, &value, sizeof bits);
    } else {
        bits = (magnitude << 20) + ((uint32_t)BIAS_GAP << 23);
    }
    bits |= sign;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint8_t mimo_fp8_encode(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 24 & 0x80u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint8_t)(sign | NAN_CODE);
    const float magnitude = fabsf(value);
    if (magnitude >= 448.0f)
        return (uint8_t)(sign | LARGEST_CODE);
    if (magnitude < 0x1p-6f) /* rounding up to 8 gives the smallest normal code, as it should */
        return (uint8_t)(sign | (uint32_t)rintf(magnitude * 0x1p9f));
    const uint32_t rounded = (bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20;
    return (uint8_t)(sign | (rounded - ((uint32_t)BIAS_GAP << 3)));
}
