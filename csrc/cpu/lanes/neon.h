/* Eight float lanes in two NEON registers, by the names of avx2.h: a holds lanes 0 .. 3, b lanes 4 .. 7. */
#ifndef MIMO_CPU_LANES_NEON_H
#define MIMO_CPU_LANES_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef struct f8 {
    float32x4_t a, b;
} f8;

static inline f8 f8_set(float x)
{
    return (f8){vdupq_n_f32(x), vdupq_n_f32(x)};
}

static inline f8 f8_load(const float *p)
{
    return (f8){vld1q_f32(p), vld1q_f32(p + 4)};
}

static inline void f8_store(float *p, f8 x)
{
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
}

static inline f8 f8_add(f8 a, f8 b)
{
    return (f8){vaddq_f32(a.a, b.a), vaddq_f32(a.b, b.b)};
}

static inline f8 f8_sub(f8 a, f8 b)
{
    return (f8){vsubq_f32(a.a, b.a), vsubq_f32(a.b, b.b)};
}

static inline f8 f8_mul(f8 a, f8 b)
{
    return (f8){vmulq_f32(a.a, b.a), vmulq_f32(a.b, b.b)};
}

static inline f8 f8_div(f8 a, f8 b)
{
    return (f8){vdivq_f32(a.a, b.a), vdivq_f32(a.b, b.b)};
}

/* a*b + c */
static inline f8 f8_fma(f8 a, f8 b, f8 c)
{
    return (f8){vfmaq_f32(c.a, a.a, b.a), vfmaq_f32(c.b, a.b, b.b)};
}

/* c - a*b */
static inline f8 f8_fnma(f8 a, f8 b, f8 c)
{
    return (f8){vfmsq_f32(c.a, a.a, b.a), vfmsq_f32(c.b, a.b, b.b)};
}

static inline f8 f8_max(f8 a, f8 b)
{
    return (f8){vmaxq_f32(a.a, b.a), vmaxq_f32(a.b, b.b)};
}

static inline f8 f8_min(f8 a, f8 b)
{
    return (f8){vminq_f32(a.a, b.a), vminq_f32(a.b, b.b)};
}

static inline f8 f8_abs(f8 x)
{
    return (f8){vabsq_f32(x.a), vabsq_f32(x.b)};
}

static inline f8 f8_neg(f8 x)
{
    return (f8){vnegq_f32(x.a), vnegq_f32(x.b)};
}

/* To the nearest integer, ties to even. */
static inline f8 f8_round(f8 x)
{
    return (f8){vrndnq_f32(x.a), vrndnq_f32(x.b)};
}

static inline float32x4_t exp2_int4(float32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}

/* 2^n of integers -126 <= n <= 127. */
static inline f8 f8_exp2_int(f8 n)
{
    return (f8){exp2_int4(n.a), exp2_int4(n.b)};
}

static inline float32x4_t keep4(float32x4_t x, uint32x4_t mask)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), mask));
}

/* x where a > b, else 0. */
static inline f8 f8_keep_greater(f8 x, f8 a, f8 b)
{
    return (f8){keep4(x.a, vcgtq_f32(a.a, b.a)), keep4(x.b, vcgtq_f32(a.b, b.b))};
}

static inline uint32x4_t in_range4(int32x4_t lane, int begin, int end)
{
    return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
}

/* Lane i is x's where begin <= i < end, else `other`'s. */
static inline f8 f8_keep_range(f8 x, f8 other, int begin, int end)
{
    static const int32_t lanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    return (f8){vbslq_f32(in_range4(vld1q_s32(lanes), begin, end), x.a, other.a),
                vbslq_f32(in_range4(vld1q_s32(lanes + 4), begin, end), x.b, other.b)};
}

/* ((0+4)+(2+6)) + ((1+5)+(3+7)) */
static inline float f8_sum(f8 x)
{
    const float32x4_t four = vaddq_f32(x.a, x.b);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static inline float f8_highest(f8 x)
{
    return vmaxvq_f32(vmaxq_f32(x.a, x.b));
}

static inline f8 f8_load_bf16(const uint16_t *p)
{
    const uint16x8_t codes = vld1q_u16(p);
    return (f8){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(codes), 16)),
                vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(codes), 16))};
}

static inline f8 f8_load_f16(const uint16_t *p)
{
    const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(p));
    return (f8){vcvt_f32_f16(vget_low_f16(half)), vcvt_f32_f16(vget_high_f16(half))};
}

/* Eight E4M3 bytes, none of them NaN. Exponent and mantissa fit a half float (bias 15, not 7: 256 times too small),
 * whose conversion also gets the subnormals right. */
static inline f8 f8_load_fp8(const uint8_t *p)
{
    const uint16x8_t wide = vmovl_u8(vld1_u8(p));
    const uint16x8_t sign = vshlq_n_u16(vandq_u16(wide, vdupq_n_u16(0x80)), 8);
    const uint16x8_t rest = vshlq_n_u16(vandq_u16(wide, vdupq_n_u16(0x7f)), 7);
    const float16x8_t half = vreinterpretq_f16_u16(vorrq_u16(sign, rest));
    const f8 small = {vcvt_f32_f16(vget_low_f16(half)), vcvt_f32_f16(vget_high_f16(half))};
    return f8_mul(small, f8_set(256.0f));
}

static inline float32x4_t e8m0_value4(uint16x4_t codes)
{
    return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(vmovl_u16(codes), 23), vdupq_n_u32(0x00400000)));
}

/* 2^(code - 127) of eight E8M0 bytes, none of them NaN; code 0 is a subnormal. */
static inline f8 f8_load_e8m0(const uint8_t *p)
{
    const uint16x8_t wide = vmovl_u8(vld1_u8(p));
    return (f8){e8m0_value4(vget_low_u16(wide)), e8m0_value4(vget_high_u16(wide))};
}

typedef struct codes8 { /* eight lanes of eight E2M1 codes */
    uint32x4_t a, b;
} codes8;

static inline codes8 codes8_load(const uint8_t *p)
{
    return (codes8){vreinterpretq_u32_u8(vld1q_u8(p)), vreinterpretq_u32_u8(vld1q_u8(p + 16))};
}

static inline float32x4_t codes_value4(uint32x4_t codes, int n)
{
    static const uint8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12};
    const uint32x4_t code = vshlq_u32(codes, vdupq_n_s32(-4 * n));
    const uint8x16_t at = vreinterpretq_u8_u32(vandq_u32(code, vdupq_n_u32(7)));
    const uint32x4_t sign = vshlq_n_u32(vandq_u32(code, vdupq_n_u32(8)), 28);
    const float32x4_t magnitude = vcvtq_n_f32_u32(vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(doubled), at)), 1);
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(magnitude), sign));
}

/* The E2M1 value of nibble n of each lane. */
static inline f8 codes8_value(codes8 codes, int n)
{
    return (f8){codes_value4(codes.a, n), codes_value4(codes.b, n)};
}

static inline int16x8_t quantize8(f8 x, f8 inverse)
{
    const f8 scaled = f8_mul(x, inverse);
    return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(scaled.a)), vqmovn_s32(vcvtnq_s32_f32(scaled.b)));
}

/* q[k] = x[k] * inverse to nearest even for one block of 32, |q| <= 127; returns the sums as mimo_act keeps them. */
static inline int32_t f8_quantize_block(int8_t *q, const f8 x[4], f8 inverse)
{
    int16x8_t sum = vdupq_n_s16(0);
    for (int i = 0; i < 2; i++) {
        const int8x16_t bytes =
            vcombine_s8(vqmovn_s16(quantize8(x[2 * i], inverse)), vqmovn_s16(quantize8(x[2 * i + 1], inverse)));
        vst1q_s8(q + 16 * i, bytes);
        sum = vaddq_s16(sum, vpaddlq_s8(bytes));
    }
    const int16x4_t four = vadd_s16(vget_low_s16(sum), vget_high_s16(sum));
    return vget_lane_s32(vreinterpret_s32_s16(vadd_s16(four, vext_s16(four, four, 2))), 0);
}

#endif
