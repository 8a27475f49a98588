/* vpdpbusd, and what else of AVX-512 kernels use, in C and AVX2, so that they run on processors without them. Included
 * before everything else; the processor is said to have all features, of which the program may then use only AVX2, FMA
 * and F16C. */
#define _GNU_SOURCE /* as sources define it that are read after this */
#include <immintrin.h>

static inline __m256i dpbusd(__m256i sum, __m256i w, __m256i x)
{
    unsigned char u[32];
    signed char s[32];
    int lane[8];
    _mm256_storeu_si256((__m256i *)u, w);
    _mm256_storeu_si256((__m256i *)s, x);
    _mm256_storeu_si256((__m256i *)lane, sum);
    for (int i = 0; i < 32; i++)
        lane[i / 4] += u[i] * s[i];
    return _mm256_loadu_si256((const __m256i *)lane);
}

/* A register of 512 bits is two. */
typedef struct wide_ints {
    __m256i a, b;
} wide_ints;

typedef struct wide_floats {
    __m256 a, b;
} wide_floats;

static inline void store_wide(float *p, wide_floats x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

#define BOTH_SET(type, f, x) ((type){f(x), f(x)})
#define BOTH_1(type, f, x) ((type){f((x).a), f((x).b)})
#define BOTH_2(type, f, x, y) ((type){f((x).a, (y).a), f((x).b, (y).b)})
#define BOTH_3(type, f, x, y, z) ((type){f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b)})

/* GCC's are macros, some of them. */
#undef _mm256_dpbusd_epi32
#undef _mm256_dpbusd_avx_epi32
#undef _mm512_inserti64x4
#undef _mm512_insertf32x8
#undef _mm512_srli_epi16
#undef _mm512_slli_epi32
#define _mm256_dpbusd_epi32 dpbusd
#define _mm256_dpbusd_avx_epi32 dpbusd
#define __m512i wide_ints
#define __m512 wide_floats
#define _mm512_castsi256_si512(x) ((wide_ints){x, x})
#define _mm512_castps256_ps512(x) ((wide_floats){x, x})
#define _mm512_inserti64x4(x, y, i) ((wide_ints){(x).a, y})
#define _mm512_insertf32x8(x, y, i) ((wide_floats){(x).a, y})
#define _mm512_broadcast_i32x4(x) BOTH_SET(wide_ints, _mm256_broadcastsi128_si256, x)
#define _mm512_set1_epi8(x) BOTH_SET(wide_ints, _mm256_set1_epi8, x)
#define _mm512_set1_epi16(x) BOTH_SET(wide_ints, _mm256_set1_epi16, x)
#define _mm512_set1_epi32(x) BOTH_SET(wide_ints, _mm256_set1_epi32, x)
#define _mm512_set1_ps(x) BOTH_SET(wide_floats, _mm256_set1_ps, x)
#define _mm512_setzero_ps() BOTH_SET(wide_floats, _mm256_set1_ps, 0.0f)
#define _mm512_srli_epi16(x, n) ((wide_ints){_mm256_srli_epi16((x).a, n), _mm256_srli_epi16((x).b, n)})
#define _mm512_cvtepi32_ps(x) BOTH_1(wide_floats, _mm256_cvtepi32_ps, x)
#define _mm512_and_si512(x, y) BOTH_2(wide_ints, _mm256_and_si256, x, y)
#define _mm512_xor_si512(x, y) BOTH_2(wide_ints, _mm256_xor_si256, x, y)
#define _mm512_madd_epi16(x, y) BOTH_2(wide_ints, _mm256_madd_epi16, x, y)
#define _mm512_shuffle_epi8(x, y) BOTH_2(wide_ints, _mm256_shuffle_epi8, x, y)
#define _mm512_mul_ps(x, y) BOTH_2(wide_floats, _mm256_mul_ps, x, y)
#define _mm512_fmadd_ps(x, y, z) BOTH_3(wide_floats, _mm256_fmadd_ps, x, y, z)
#define _mm512_dpbusd_epi32(x, y, z) BOTH_3(wide_ints, dpbusd, x, y, z)
#define _mm512_storeu_ps(p, x) store_wide(p, x)
#define _mm512_loadu_ps(p) ((wide_floats){_mm256_loadu_ps(p), _mm256_loadu_ps((p) + 8)})
#define _mm512_slli_epi32(x, n) ((wide_ints){_mm256_slli_epi32((x).a, n), _mm256_slli_epi32((x).b, n)})
#define _mm512_castsi512_ps(x) BOTH_1(wide_floats, _mm256_castsi256_ps, x)
#define _mm512_cvtepu16_epi32(x) \
    ((wide_ints){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))})
#define __builtin_cpu_supports(name) 1
