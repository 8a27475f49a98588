/* The vectors of attention: eight lanes, those of the folder. A variant with longer ones has a header of its own with
 * these names. Include after the lanes. */
#ifndef MIMO_CPU_LANES_VEC8_H
#define MIMO_CPU_LANES_VEC8_H

enum { VEC_LANES = 8 };
typedef f8 vec;

static ALWAYS_INLINE vec vec_set(float x)
{
    return f8_set(x);
}

static ALWAYS_INLINE vec vec_mul(vec a, vec b)
{
    return f8_mul(a, b);
}

/* a*b + c */
static ALWAYS_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return f8_fma(a, b, c);
}

static ALWAYS_INLINE void vec_store(float *p, vec x)
{
    f8_store(p, x);
}

static ALWAYS_INLINE vec vec_load(const float *p)
{
    return f8_load(p);
}

static ALWAYS_INLINE vec vec_load_bf16(const uint16_t *p)
{
    return f8_load_bf16(p);
}

/* Eight elements at p and, in longer vectors, eight at q. */
static ALWAYS_INLINE vec vec_join(const float *p, const float *q)
{
    (void)q;
    return f8_load(p);
}

static ALWAYS_INLINE vec vec_join_bf16(const uint16_t *p, const uint16_t *q)
{
    (void)q;
    return f8_load_bf16(p);
}

/* Vectors of which the sums for N heads all stay in registers. */
static ALWAYS_INLINE size_t vectors_together(size_t N)
{
    return N <= 2 ? 4 : N <= 4 ? 3 : 2;
}

#endif
