/* MXFP4 (OCP Microscaling Formats 1.0): 32 elements of E2M1 share one E8M0 scale.
 *
 * E2M1 code: bit 3 is the sign, the low three bits index {0, 0.5, 1, 1.5, 2, 3, 4, 6}. E8M0 code b is 2^(b-127), 255 is
 * NaN. Stored as MiMo checkpoints do (and GGUF does not): byte j of a row holds element 2j in its low nibble and
 * element 2j+1 in its high nibble; scales are a tensor of their own. */
#ifndef MIMO_FORMAT_MXFP4_H
#define MIMO_FORMAT_MXFP4_H

#include <stddef.h>
#include <stdint.h>

enum { MIMO_MX_BLOCK = 32, MIMO_E8M0_NAN = 255 };

float mimo_e2m1_decode(uint8_t code);  /* low nibble used */
int mimo_e2m1_doubled(uint8_t code);   /* twice the value: an integer in -12..12 */
uint8_t mimo_e2m1_encode(float value); /* nearest, ties to the even code, saturating at 6 */
float mimo_e8m0_decode(uint8_t code);  /* 2^(code-127); NaN for 255 */

/* Each block by itself: of all power-of-two scales, the one with the least squared error (the smaller scale on a tie),
 * never above code 252, the last whose products all fit a float. An all-zero block has scale code 127 (a scale of 1: no
 * kernel meets a subnormal because of it) and codes 0. values must be finite. rows x
 * cols, cols % 32 == 0; codes [rows, cols/2], scales [rows, cols/32]. */
void mimo_mxfp4_encode(uint8_t *codes, uint8_t *scales, const float *values, size_t rows, size_t cols);
void mimo_mxfp4_decode(float *values, const uint8_t *codes, const uint8_t *scales, size_t rows, size_t cols);

#endif
