/* vpdpbusd in C, so that kernels which use it run on processors without it. Included before everything else; the
 * processor is said to have all features, of which the program may then use only AVX2, FMA and F16C. */
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

/* GCC's are macros. */
#undef _mm256_dpbusd_epi32
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_epi32 dpbusd
#define _mm256_dpbusd_avx_epi32 dpbusd
#define __builtin_cpu_supports(name) 1
