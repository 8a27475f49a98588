/* mimo_expf of base/exp.h, eight at a time, bit for bit. Include after the lanes. */
#ifndef MIMO_CPU_LANES_EXP_H
#define MIMO_CPU_LANES_EXP_H

#include "base/exp.h"

static inline f8 f8_exp(f8 x)
{
    const f8 clamped = f8_min(x, f8_set(MIMO_EXP_HIGH));
    /* The lower clamp only keeps 2^n defined in lanes whose result is dropped. */
    const f8 n = f8_max(f8_round(f8_mul(clamped, f8_set(MIMO_EXP_LOG2E))), f8_set(-126.0f));
    f8 r = f8_fnma(n, f8_set(MIMO_EXP_LN2_HIGH), clamped);
    r = f8_fnma(n, f8_set(MIMO_EXP_LN2_LOW), r);
    f8 p = f8_set(MIMO_EXP_C7);
    p = f8_fma(p, r, f8_set(MIMO_EXP_C6));
    p = f8_fma(p, r, f8_set(MIMO_EXP_C5));
    p = f8_fma(p, r, f8_set(MIMO_EXP_C4));
    p = f8_fma(p, r, f8_set(MIMO_EXP_C3));
    p = f8_fma(p, r, f8_set(MIMO_EXP_C2));
    p = f8_fma(p, f8_mul(r, r), r);
    p = f8_add(p, f8_set(1.0f));
    return f8_keep_greater(f8_mul(p, f8_exp2_int(n)), x, f8_set(MIMO_EXP_LOW));
}

#endif
