/* Cosine and sine of an angle in radians, the same bits on every machine: for |angle| < 2^30, within one unit in the
 * last place. */
#ifndef MIMO_CUDA_OP_ANGLE_H
#define MIMO_CUDA_OP_ANGLE_H

#include <math.h>
#include <stdint.h>

#include "base/target.h"

/* angle = n * pi/2 + r, |r| <= pi/4: pi/2 in two doubles; then Taylor terms to r^12, in double. */
MIMO_HD inline void mimo_cuda_turn(float *cosine, float *sine, float angle)
{
    const double n = rint((double)angle * 0.63661977236758138);
    double r = fma(-n, 1.5707963267948966, (double)angle);
    r = fma(-n, 6.123233995736766e-17, r);
    const double z = r * r;
    double s = -1.0 / 39916800.0, c = 1.0 / 479001600.0;
    s = fma(s, z, 1.0 / 362880.0);
    s = fma(s, z, -1.0 / 5040.0);
    s = fma(s, z, 1.0 / 120.0);
    s = fma(s, z, -1.0 / 6.0);
    s = fma(s * z, r, r);
    c = fma(c, z, -1.0 / 3628800.0);
    c = fma(c, z, 1.0 / 40320.0);
    c = fma(c, z, -1.0 / 720.0);
    c = fma(c, z, 1.0 / 24.0);
    c = fma(c, z, -0.5);
    c = fma(c, z, 1.0);
    const int64_t quarter = (int64_t)n & 3;
    const double x = quarter & 1 ? -s : c, y = quarter & 1 ? c : s;
    *cosine = (float)(quarter & 2 ? -x : x);
    *sine = (float)(quarter & 2 ? -y : y);
}

#endif
