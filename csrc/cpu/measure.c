/* What this machine can do at most: its read bandwidth and its rate of int8 products. */
#include "cpu/measure.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "base/alloc.h"
#include "base/clock.h"
#include "base/pool.h"
#include "base/size.h"
#include "cpu/kernels.h"

/* 16 bytes: eight sums of them stay in registers with any instruction set. */
typedef uint64_t chunk __attribute__((vector_size(16)));

/* Multiplies for some microseconds. Returns a value that depends on every product. */
typedef uint32_t multiply_fn(uint32_t seed);

enum { CHUNKS_PER_TURN = 8, MULTIPLY_TURNS = 4096, CHAINS = 12 };

typedef struct measurement {
    const chunk *data;
    size_t chunks; /* of one worker */
    multiply_fn *multiply;
    uint64_t products;          /* of one call */
    uint64_t end;               /* ns */
    atomic_uint_fast64_t count; /* bytes read, or products */
    atomic_uint_fast64_t sink;  /* keeps the compiler from leaving the work out */
} measurement;

/* Runs fn on `threads` workers for `seconds`; *out is what they counted, per second. */
static mimo_status per_second(double *out, mimo_pool_fn *fn, measurement *m, size_t threads, double seconds,
                              mimo_error *err)
{
    mimo_pool *pool;
    MIMO_TRY(mimo_pool_open(&pool, threads, false, NULL, err));
    const uint64_t begin = mimo_clock_ns();
    m->end = begin + (uint64_t)(seconds * 1e9);
    mimo_pool_run(pool, fn, m);
    const uint64_t end = mimo_clock_ns();
    mimo_pool_close(pool);
    *out = (double)atomic_load(&m->count) / ((double)(end - begin) / 1e9);
    return MIMO_OK;
}

static mimo_status check(size_t threads, double seconds, mimo_error *err)
{
    if (threads < 1 || threads > 1024)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "threads: expected 1 to 1024, found %zu", threads);
    if (!(seconds > 0 && seconds <= 60))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "seconds: expected more than 0 and at most 60, found %g", seconds);
    return MIMO_OK;
}

/* ---- reading ---- */

static void read_share(void *context, mimo_worker *worker)
{
    measurement *const m = context;
    const chunk *const begin = m->data + worker->index * m->chunks;
    chunk sum[CHUNKS_PER_TURN] = {{0}};
    uint64_t bytes = 0;
    do {
        for (size_t i = 0; i < m->chunks; i += CHUNKS_PER_TURN) {
            for (size_t j = 0; j < CHUNKS_PER_TURN; j++)
                sum[j] ^= begin[i + j];
        }
        bytes += m->chunks * sizeof(chunk);
    } while (mimo_clock_ns() < m->end);
    for (size_t j = 1; j < CHUNKS_PER_TURN; j++)
        sum[0] ^= sum[j];
    atomic_fetch_add(&m->sink, sum[0][0] ^ sum[0][1]);
    atomic_fetch_add(&m->count, bytes);
}

mimo_status mimo_measure_read_bandwidth(double *out, size_t bytes, size_t threads, double seconds, mimo_error *err)
{
    MIMO_TRY(check(threads, seconds, err));
    const size_t turn = CHUNKS_PER_TURN * sizeof(chunk);
    const size_t share = bytes / threads / turn * turn;
    if (share == 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "bytes: expected at least %zu for each of %zu threads, found %zu", turn,
                         threads, bytes);
    char *data;
    MIMO_TRY(mimo_alloc_array(&data, share, threads, "a bandwidth measurement", err));
    memset(data, 1, share * threads); /* untouched pages would all be the same page of zeros */
    measurement m = {.data = (const chunk *)(const void *)data, .chunks = share / sizeof(chunk)};
    const mimo_status status = per_second(out, read_share, &m, threads, seconds, err);
    mimo_free(data);
    return status;
}

/* ---- multiplying: CHAINS independent sums hide the latency of the additions ---- */

#if defined(__x86_64__)

__attribute__((target("avx2"))) static uint32_t multiply_avx2(uint32_t seed)
{
    __m256i sum[CHAINS], weights = _mm256_set1_epi8((char)seed), rows = _mm256_set1_epi8((char)(seed + 1));
    for (size_t j = 0; j < CHAINS; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < MULTIPLY_TURNS; i++) {
        for (size_t j = 0; j < CHAINS; j++) {
            __asm__ volatile("" : "+x"(rows)); /* a new operand every time, as far as the compiler knows */
            sum[j] = _mm256_add_epi16(sum[j], _mm256_maddubs_epi16(weights, rows));
        }
    }
    for (size_t j = 1; j < CHAINS; j++)
        sum[0] = _mm256_add_epi16(sum[0], sum[j]);
    return (uint32_t)_mm256_extract_epi32(sum[0], 0);
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static uint32_t multiply_avx512(uint32_t seed)
{
    __m512i sum[CHAINS], weights = _mm512_set1_epi8((char)seed), rows = _mm512_set1_epi8((char)(seed + 1));
    for (size_t j = 0; j < CHAINS; j++)
        sum[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < MULTIPLY_TURNS; i++) {
        for (size_t j = 0; j < CHAINS; j++) {
            __asm__ volatile("" : "+v"(rows));
            sum[j] = _mm512_dpbusd_epi32(sum[j], weights, rows);
        }
    }
    for (size_t j = 1; j < CHAINS; j++)
        sum[0] = _mm512_add_epi32(sum[0], sum[j]);
    return (uint32_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(sum[0]));
}

#if MIMO_HAVE_AVXVNNI
__attribute__((target("avx2,avxvnni"))) static uint32_t multiply_avxvnni(uint32_t seed)
{
    __m256i sum[CHAINS], weights = _mm256_set1_epi8((char)seed), rows = _mm256_set1_epi8((char)(seed + 1));
    for (size_t j = 0; j < CHAINS; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < MULTIPLY_TURNS; i++) {
        for (size_t j = 0; j < CHAINS; j++) {
            __asm__ volatile("" : "+x"(rows));
            sum[j] = _mm256_dpbusd_avx_epi32(sum[j], weights, rows);
        }
    }
    for (size_t j = 1; j < CHAINS; j++)
        sum[0] = _mm256_add_epi32(sum[0], sum[j]);
    return (uint32_t)_mm256_extract_epi32(sum[0], 0);
}
#endif

#elif defined(__aarch64__)

__attribute__((target("arch=armv8.2-a+dotprod"))) static uint32_t multiply_neon(uint32_t seed)
{
    int32x4_t sum[CHAINS];
    int8x16_t weights = vdupq_n_s8((int8_t)seed), rows = vdupq_n_s8((int8_t)(seed + 1));
    for (size_t j = 0; j < CHAINS; j++)
        sum[j] = vdupq_n_s32(0);
    for (size_t i = 0; i < MULTIPLY_TURNS; i++) {
        for (size_t j = 0; j < CHAINS; j++) {
            __asm__ volatile("" : "+w"(rows));
            sum[j] = vdotq_s32(sum[j], weights, rows);
        }
    }
    for (size_t j = 1; j < CHAINS; j++)
        sum[0] = vaddq_s32(sum[0], sum[j]);
    return (uint32_t)vgetq_lane_s32(sum[0], 0);
}

#endif

/* The kernels' own list of features decides what counts as running here. */
static bool runs(const char *variant)
{
    const char *why;
    return mimo_kernels_find(variant, &why) != NULL;
}

static multiply_fn *best_multiply(uint64_t *width)
{
    *width = 0;
#if defined(__x86_64__)
    if (runs("avx512")) {
        *width = 64;
        return multiply_avx512;
    }
#if MIMO_HAVE_AVXVNNI
    if (runs("avxvnni")) {
        *width = 32;
        return multiply_avxvnni;
    }
#endif
    if (runs("avx2")) {
        *width = 32;
        return multiply_avx2;
    }
#elif defined(__aarch64__)
    if (runs("neon")) {
        *width = 16;
        return multiply_neon;
    }
#endif
    return NULL;
}

static void multiply_share(void *context, mimo_worker *worker)
{
    measurement *const m = context;
    uint64_t products = 0;
    uint32_t sum = (uint32_t)worker->index + 1;
    do {
        sum = m->multiply(sum);
        products += m->products;
    } while (mimo_clock_ns() < m->end);
    atomic_fetch_add(&m->sink, sum);
    atomic_fetch_add(&m->count, products);
}

mimo_status mimo_measure_int8_peak(double *out, size_t threads, double seconds, mimo_error *err)
{
    MIMO_TRY(check(threads, seconds, err));
    uint64_t width;
    measurement m = {.multiply = best_multiply(&width)};
    if (m.multiply == NULL)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                         "the int8 peak: expected a CPU with AVX2, AVX-512 VNNI or NEON dot products");
    m.products = (uint64_t)MULTIPLY_TURNS * CHAINS * width;
    return per_second(out, multiply_share, &m, threads, seconds, err);
}
