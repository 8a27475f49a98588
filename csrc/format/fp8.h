/* FP8 E4M3 (the "fn" form of OCP 8-bit floating point 1.0): no infinity, 0x7f and 0xff are NaN, largest value 448. */
#ifndef MIMO_FORMAT_FP8_H
#define MIMO_FORMAT_FP8_H

#include <stdint.h>

float mimo_fp8_decode(uint8_t code);
/* Round to nearest even, saturating at 448; NaN becomes 0x7f with the sign kept. */
uint8_t mimo_fp8_encode(float value);

#endif
