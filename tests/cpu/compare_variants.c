/* Runs every kernel of the variant named on the command line beside the plain C variant and compares the results bit
 * for bit: for processors that are only emulated, where the tests in Python cannot run. Exits 0 if all agree, else
 * names the first that does not. */
#include "cpu/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t state = 1;

static uint32_t draw(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float draw_float(void)
{
    return ((float)draw() / 8388608.0f - 1.0f) * ldexpf(1.0f, (int)(draw() % 12) - 6);
}

enum { K_MOST = 192, ROWS_MOST = 9, OCTETS = 5, BYTES = OCTETS * 8 * K_MOST * 4 };

static _Alignas(64) uint8_t data[BYTES], scales[BYTES];
static float f[ROWS_MOST * K_MOST], d[ROWS_MOST * K_MOST / 32], y[2][ROWS_MOST * OCTETS * 8];
static int8_t q[ROWS_MOST * K_MOST];
static int32_t s[ROWS_MOST * K_MOST / 32];

static void fail(const char *what, size_t a, size_t b)
{
    printf("%s differs (%zu, %zu)\n", what, a, b);
    exit(1);
}

static void fill_panel(mimo_packing packing)
{
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (uint8_t)draw();
    for (size_t i = 0; i < BYTES / 4; i++) {
        const float value = draw_float(), scale = fabsf(draw_float()) + 0.01f;
        if (packing == MIMO_PACK_F32)
            memcpy(data + 4 * i, &value, 4);
        if (packing == MIMO_PACK_FP8)
            memcpy(scales + 4 * i, &scale, 4);
    }
    for (size_t i = 0; i < BYTES; i++) {
        if (packing == MIMO_PACK_BF16 && i % 2 == 1)
            data[i] = (uint8_t)((data[i] & 0x80) | 0x3e);
        if (packing == MIMO_PACK_FP8 && (data[i] & 0x7f) == 0x7f)
            data[i] = 0;
        if (packing == MIMO_PACK_Q8 && data[i] == 0x80)
            data[i] = 0x81;
        if (packing == MIMO_PACK_Q8)
            scales[i] = i % 2 == 1 ? 0x3c : (uint8_t)draw();
        if (packing == MIMO_PACK_Q4)
            scales[i] = i % 2 == 1 ? (uint8_t)(0x24 | (draw() & 0x83)) : (uint8_t)draw();
        if (packing == MIMO_PACK_MXFP4)
            scales[i] = (uint8_t)(draw() % 4 == 0 ? draw() % 3 : 118 + draw() % 8);
    }
}

static void compare_gemms(const mimo_kernels *ref, const mimo_kernels *kernels, mimo_packing packing, uint32_t K)
{
    static const uint16_t gathered[ROWS_MOST] = {3, 0, 8, 8, 1, 5, 7, 2, 4};
    const mimo_panel panel = {packing, 8 * OCTETS, K, data, scales};
    const mimo_act x = {.f = f, .q = q, .d = d, .s = s, .K = K};
    fill_panel(packing);
    for (int fast = 0; fast < 2; fast++) {
        mimo_gemm *const a = fast ? ref->gemm_q8[packing] : ref->gemm_f32[packing];
        mimo_gemm *const b = fast ? kernels->gemm_q8[packing] : kernels->gemm_f32[packing];
        for (size_t T = 1; a != NULL && T <= ROWS_MOST; T++) {
            memset(y, 0, sizeof y);
            a(y[0], OCTETS * 8, &panel, 0, OCTETS, &x, T % 2 ? NULL : gathered, T);
            b(y[1], OCTETS * 8, &panel, 0, OCTETS, &x, T % 2 ? NULL : gathered, T);
            if (memcmp(y[0], y[1], sizeof y[0]) != 0)
                fail(fast ? "gemm_q8" : "gemm_f32", packing, T);
        }
    }
}

static void compare_rows(const mimo_kernels *ref, const mimo_kernels *kernels, size_t n)
{
    static float a[2][K_MOST], g[K_MOST], u[K_MOST];
    static int8_t q2[K_MOST];
    static float d2[K_MOST / 32];
    static int32_t s2[K_MOST / 32];
    for (size_t i = 0; i < n; i++) {
        g[i] = draw_float();
        u[i] = draw_float();
    }
    ref->rms_norm(a[0], g, u, n, 1e-5f);
    kernels->rms_norm(a[1], g, u, n, 1e-5f);
    if (memcmp(a[0], a[1], 4 * n) != 0)
        fail("rms_norm", n, 0);
    ref->swiglu(a[0], g, u, n);
    kernels->swiglu(a[1], g, u, n);
    if (memcmp(a[0], a[1], 4 * n) != 0)
        fail("swiglu", n, 0);
    ref->rope(a[0], g, u, n / 2 * 2);
    kernels->rope(a[1], g, u, n / 2 * 2);
    if (memcmp(a[0], a[1], 4 * n) != 0)
        fail("rope", n, 0);
    ref->quantize(q, d, s, g, n / 32 * 32);
    kernels->quantize(q2, d2, s2, g, n / 32 * 32);
    if (memcmp(q, q2, n / 32 * 32) != 0 || memcmp(d, d2, n / 32 * 4) != 0 || memcmp(s, s2, n / 32 * 4) != 0)
        fail("quantize", n, 0);
}

static void compare_attention(const mimo_kernels *ref, const mimo_kernels *kernels, size_t heads, size_t D, size_t Dv)
{
    static float k[256 * 24], v[256 * 24], query[8 * 24], m[2][8], l[2][8], acc[2][8 * 24], scratch[MIMO_ATTEND_SCRATCH];
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        k[i] = draw_float();
        v[i] = draw_float();
        query[i % (8 * 24)] = draw_float();
    }
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (size_t i = 0; bf16 && i < sizeof k / 2; i++) {
            ((uint16_t *)k)[i] = (uint16_t)(0x3e00 | (draw() & 0x81ff));
            ((uint16_t *)v)[i] = (uint16_t)(0x3e00 | (draw() & 0x81ff));
        }
        for (int i = 0; i < 2; i++) {
            const mimo_kernels *const table = i == 0 ? ref : kernels;
            memset(acc[i], 0, sizeof acc[i]);
            const mimo_keys keys = {.k = k, .v = v, .begin = 5, .end = 251, .D = D, .Dv = Dv, .scale = 0.3f};
            (bf16 ? table->attend_bf16 : table->attend_f32)(m[i], l[i], acc[i], query, heads, &keys, scratch);
        }
        if (memcmp(m[0], m[1], 4 * heads) != 0 || memcmp(l[0], l[1], 4 * heads) != 0 ||
            memcmp(acc[0], acc[1], sizeof acc[0]) != 0)
            fail(bf16 ? "attend_bf16" : "attend_f32", heads, D);
    }
}

int main(int argc, char **argv)
{
    mimo_error err = {0};
    const mimo_kernels *ref, *kernels;
    if (argc != 2 || mimo_kernels_choose(&ref, "ref", &err) || mimo_kernels_choose(&kernels, argv[1], &err)) {
        printf("%s\n", argc == 2 ? err.text : "usage: compare_variants NAME");
        return 2;
    }
    for (size_t i = 0; i < ROWS_MOST * K_MOST; i++)
        f[i] = draw_float();
    for (size_t n = 1; n <= K_MOST; n++)
        compare_rows(ref, kernels, n);
    ref->quantize(q, d, s, f, ROWS_MOST * K_MOST);
    memset(q, 127, K_MOST); /* one row at its limit; s follows */
    memset(q + K_MOST, -127, K_MOST);
    for (size_t b = 0; b < K_MOST / 32; b++) {
        s[b] = 16 * 127 * 0x10001;
        s[K_MOST / 32 + b] = (int32_t)((uint32_t)(-16 * 127) << 16 | (uint16_t)(-16 * 127));
    }
    for (int packing = 0; packing < MIMO_PACK_COUNT; packing++)
        for (uint32_t K = 32; K <= K_MOST; K += 32)
            compare_gemms(ref, kernels, (mimo_packing)packing, K);
    for (size_t heads = 1; heads <= 8; heads++)
        for (size_t D = 1; D <= 24; D += heads)
            compare_attention(ref, kernels, heads, D, 25 - D);
    printf("%s agrees with ref\n", kernels->name);
    return 0;
}
