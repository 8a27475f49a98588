/* F16: IEEE half precision, 5 bits of exponent, 10 of mantissa. Finite values only. */
#ifndef MIMO_FORMAT_F16_H
#define MIMO_FORMAT_F16_H

#include <stdint.h>
#include <string.h>

#define MIMO_F16_INFINITY 0x7c00u

/* Exponent and mantissa are read as those of a float32, 2^112 times too small, and so are subnormals. */
static inline float mimo_f16_decode(uint16_t code)
{
    const uint32_t bits = (code & 0x7fffu) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return (code & 0x8000u) != 0 ? -value : value;
}

/* Round to nearest even; overflow becomes infinity. */
static inline uint16_t mimo_f16_encode(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    float size;
    memcpy(&size, &bits, sizeof size);
    if (size >= 65520.0f)
        return (uint16_t)(sign | MIMO_F16_INFINITY);
    if (size < 0x1p-14f) { /* subnormal: a float32 near 1/2 has the same steps */
        size += 0.5f;
        memcpy(&bits, &size, sizeof bits);
        return (uint16_t)(sign | (bits & 0x7fffffu));
    }
    return (uint16_t)(sign | ((bits - (112u << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13));
}

#endif
