/* What this machine can do at most: its read bandwidth and its rate of int8 products, through the engine's own workers.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/alloc.h"
#include "cpu/pool.h"
#include "cpu/profile.h"
#include "python/probe.h"

/* 16 bytes: eight sums of them stay in registers with any instruction set. */
typedef uint64_t chunk __attribute__((vector_size(16)));

enum { CHUNKS_PER_ROUND = 8, PRODUCTS_PER_ROUND = 4096 };

typedef struct measurement {
    const chunk *data;
    size_t chunks;              /* of one worker */
    uint64_t end;               /* ns */
    atomic_uint_fast64_t count; /* bytes read, or products */
    atomic_uint_fast64_t sink;  /* keeps the compiler from leaving the work out */
} measurement;

static void read_share(void *context, mimo_worker *worker)
{
    measurement *const m = context;
    const chunk *const begin = m->data + worker->index * m->chunks;
    chunk sum[CHUNKS_PER_ROUND] = {{0}};
    uint64_t bytes = 0;
    do {
        for (size_t i = 0; i < m->chunks; i += CHUNKS_PER_ROUND) {
            for (size_t j = 0; j < CHUNKS_PER_ROUND; j++)
                sum[j] ^= begin[i + j];
        }
        bytes += m->chunks * sizeof(chunk);
    } while (mimo_profile_clock() < m->end);
    for (size_t j = 1; j < CHUNKS_PER_ROUND; j++)
        sum[0] ^= sum[j];
    atomic_fetch_add(&m->sink, sum[0][0] ^ sum[0][1]);
    atomic_fetch_add(&m->count, bytes);
}

/* Runs fn on `threads` workers for `seconds`; what they counted, per second. */
static PyObject *per_second(mimo_pool_fn *fn, measurement *m, size_t threads, double seconds)
{
    mimo_pool *pool;
    mimo_error err = {0};
    if (mimo_pool_open(&pool, threads, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    uint64_t begin = 0, end = 0;
    Py_BEGIN_ALLOW_THREADS;
    begin = mimo_profile_clock();
    m->end = begin + (uint64_t)(seconds * 1e9);
    mimo_pool_run(pool, fn, m);
    end = mimo_profile_clock();
    mimo_pool_close(pool);
    Py_END_ALLOW_THREADS;
    return PyFloat_FromDouble((double)atomic_load(&m->count) / ((double)(end - begin) / 1e9));
}

static PyObject *probe_read_bandwidth(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long bytes;
    unsigned int threads;
    double seconds;
    if (!PyArg_ParseTuple(args, "KId", &bytes, &threads, &seconds))
        return NULL;
    const size_t round = CHUNKS_PER_ROUND * sizeof(chunk);
    const size_t share = threads == 0 ? 0 : (size_t)bytes / threads / round * round;
    if (share == 0 || !(seconds > 0 && seconds < 3600))
        return PyErr_Format(PyExc_ValueError, "expected threads, at least %zu bytes for each, and seconds", round);
    char *data;
    mimo_error err = {0};
    if (mimo_alloc_array(&data, share, threads, "a bandwidth probe", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    memset(data, 1, share * threads);
    measurement m = {.data = (const chunk *)(const void *)data, .chunks = share / sizeof(chunk)};
    PyObject *const result = per_second(read_share, &m, threads, seconds);
    mimo_free(data);
    return result;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) static void multiply(void *context, mimo_worker *worker)
{
    measurement *const m = context;
    __m256i sum[8], weights = _mm256_set1_epi8((char)(worker->index + 1));
    for (size_t j = 0; j < 8; j++)
        sum[j] = _mm256_set1_epi8((char)j);
    uint64_t products = 0;
    do {
        for (size_t i = 0; i < PRODUCTS_PER_ROUND; i++) {
            for (size_t j = 0; j < 8; j++)
                sum[j] = _mm256_add_epi16(sum[j], _mm256_maddubs_epi16(weights, sum[(j + 1) % 8]));
            __asm__ volatile("" : "+x"(weights)); /* a new operand every time, as far as the compiler knows */
        }
        products += (uint64_t)PRODUCTS_PER_ROUND * 8 * 32;
    } while (mimo_profile_clock() < m->end);
    for (size_t j = 1; j < 8; j++)
        sum[0] = _mm256_add_epi16(sum[0], sum[j]);
    atomic_fetch_add(&m->sink, (uint64_t)(uint32_t)_mm256_extract_epi32(sum[0], 0));
    atomic_fetch_add(&m->count, products);
}

#endif

static PyObject *probe_int8_peak(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned int threads;
    double seconds;
    if (!PyArg_ParseTuple(args, "Id", &threads, &seconds))
        return NULL;
    if (threads == 0 || !(seconds > 0 && seconds < 3600))
        return PyErr_Format(PyExc_ValueError, "expected threads and seconds");
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        measurement m = {0};
        return per_second(multiply, &m, threads, seconds);
    }
#endif
    return PyErr_Format(PyExc_NotImplementedError, "int8_peak: expected a CPU with AVX2");
}

PyMethodDef mimo_probe_machine_methods[] = {
    {"read_bandwidth", probe_read_bandwidth, METH_VARARGS,
     "read_bandwidth(bytes, threads, seconds) -> bytes read per second, each thread over and over its share of "
     "`bytes`"},
    {"int8_peak", probe_int8_peak, METH_VARARGS,
     "int8_peak(threads, seconds) -> int8 products per second, added in 16 bits (AVX2 maddubs)"},
    {NULL},
};
