/* BF16: the upper half of an IEEE float32. */
#ifndef MIMO_FORMAT_BF16_H
#define MIMO_FORMAT_BF16_H

#include <stdint.h>
#include <string.h>

#include "base/target.h"

static inline MIMO_HD float mimo_bf16_decode(uint16_t code)
{
    const uint32_t bits = (uint32_t)code << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Round to nearest even; NaN stays NaN (quiet), overflow becomes infinity. */
static inline MIMO_HD uint16_t mimo_bf16_encode(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
