/* Which kernels this CPU runs. A variant that is not compiled in is not in `variants`, and says so by its name. */
#include "cpu/kernels.h"
#include "cpu/variants.h"

#include <stdbool.h>
#include <string.h>

#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* Features are asked for in this order; the first that is missing is named. NULL: all there. */
static const char *missing_nothing(void)
{
    return NULL;
}

static const mimo_kernels ref = MIMO_VARIANT_TABLE(ref, ref);

#if MIMO_HAVE_AVX2
static const mimo_kernels avx2 = MIMO_VARIANT_TABLE(avx2, avx2);

static const char *missing_for_avx2(void)
{
    return !__builtin_cpu_supports("avx2")   ? "this CPU lacks AVX2"
           : !__builtin_cpu_supports("fma")  ? "this CPU lacks FMA"
           : !__builtin_cpu_supports("f16c") ? "this CPU lacks F16C"
                                             : NULL;
}
#endif

#if MIMO_HAVE_AVXVNNI
static const mimo_kernels avxvnni = MIMO_VARIANT_TABLE(avxvnni, avx2);

static const char *missing_for_avxvnni(void)
{
    return !__builtin_cpu_supports("avxvnni") ? "this CPU lacks AVX-VNNI" : missing_for_avx2();
}
#endif

#if MIMO_HAVE_AVX512
static const mimo_kernels avx512 = MIMO_VARIANT_TABLE(avx512, avx512);

static const char *missing_for_avx512(void)
{
    return !__builtin_cpu_supports("avx512f")      ? "this CPU lacks AVX-512 F"
           : !__builtin_cpu_supports("avx512bw")   ? "this CPU lacks AVX-512 BW"
           : !__builtin_cpu_supports("avx512vl")   ? "this CPU lacks AVX-512 VL"
           : !__builtin_cpu_supports("avx512dq")   ? "this CPU lacks AVX-512 DQ"
           : !__builtin_cpu_supports("avx512vnni") ? "this CPU lacks AVX-512 VNNI"
                                                   : missing_for_avx2();
}
#endif

#if MIMO_HAVE_NEON
static const mimo_kernels neon = MIMO_VARIANT_TABLE(neon, neon);

#if defined(__linux__)
static const char *missing_for_neon(void)
{
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? NULL : "this CPU lacks the dot product instructions (asimddp)";
}
#else
/* Every ARM Mac has the dot product instructions. */
static const char *missing_for_neon(void)
{
    return NULL;
}
#endif
#endif

typedef struct variant {
    const mimo_kernels *kernels;
    const char *(*missing)(void);
} variant;

/* Worst first. */
static const variant variants[] = {
    {&ref, missing_nothing},
#if MIMO_HAVE_AVX2
    {&avx2, missing_for_avx2},
#endif
#if MIMO_HAVE_AVXVNNI
    {&avxvnni, missing_for_avxvnni},
#endif
#if MIMO_HAVE_AVX512
    {&avx512, missing_for_avx512},
#endif
#if MIMO_HAVE_NEON
    {&neon, missing_for_neon},
#endif
};

enum { VARIANTS = sizeof variants / sizeof *variants };

const char *const mimo_kernel_names[] = {"ref", "avx2", "avxvnni", "avx512", "neon", NULL};

static bool is_known(const char *name)
{
    for (size_t i = 0; mimo_kernel_names[i] != NULL; i++)
        if (strcmp(mimo_kernel_names[i], name) == 0)
            return true;
    return false;
}

const mimo_kernels *mimo_kernels_find(const char *name, const char **why)
{
    for (size_t i = 0; i < VARIANTS; i++) {
        if (strcmp(variants[i].kernels->name, name) != 0)
            continue;
        *why = variants[i].missing();
        return *why == NULL ? variants[i].kernels : NULL;
    }
    *why = is_known(name)
               ? "not compiled in: this build is for another processor, or its compiler lacks the instructions"
               : "there is no such variant";
    return NULL;
}

mimo_status mimo_kernels_choose(const mimo_kernels **out, const char *name, mimo_error *err)
{
    if (name != NULL && name[0] != '\0') {
        const char *why;
        *out = mimo_kernels_find(name, &why);
        if (*out != NULL)
            return MIMO_OK;
        return MIMO_FAIL(err, is_known(name) ? MIMO_ERR_UNSUPPORTED : MIMO_ERR_VALUE,
                         "CPU kernels \"%s\": %s (known are ref, avx2, avxvnni, avx512, neon)", name, why);
    }
    for (size_t i = VARIANTS; i-- > 0;) {
        if (variants[i].missing() != NULL)
            continue;
        *out = variants[i].kernels;
        break;
    }
    return MIMO_OK;
}
