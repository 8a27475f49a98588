/* The functions of every variant, declared once: file X.c of folder V defines mimo_V_<name> for each name of its
 * family. A folder without such a file takes the functions of another. */
#ifndef MIMO_CPU_VARIANTS_H
#define MIMO_CPU_VARIANTS_H

#include "cpu/kernels.h"

#define MIMO_VARIANT_DECLARE_Q8(V) mimo_gemm mimo_##V##_gemm_q8_mxfp4, mimo_##V##_gemm_q8_q8, mimo_##V##_gemm_q8_q4;

#define MIMO_VARIANT_DECLARE(V)                                                                                        \
    MIMO_VARIANT_DECLARE_Q8(V)                                                                                         \
    mimo_gemm mimo_##V##_gemm_f32_f32, mimo_##V##_gemm_f32_bf16, mimo_##V##_gemm_f32_fp8, mimo_##V##_gemm_f32_mxfp4;   \
    void mimo_##V##_rms_norm(float *y, const float *x, const float *w, size_t H, float eps);                           \
    void mimo_##V##_quantize(int8_t *q, float *d, int32_t *s, const float *x, size_t K);                               \
    void mimo_##V##_swiglu(float *h, const float *gate, const float *up, size_t n);                                    \
    void mimo_##V##_rope(float *x, const float *cos, const float *sin, size_t R);                                      \
    mimo_attend mimo_##V##_attend_f32, mimo_##V##_attend_bf16;

MIMO_VARIANT_DECLARE(ref)
MIMO_VARIANT_DECLARE(avx2)
MIMO_VARIANT_DECLARE_Q8(avxvnni)
MIMO_VARIANT_DECLARE(avx512)
MIMO_VARIANT_DECLARE(neon)

/* Integer gemms of V, all else of F. */
#define MIMO_VARIANT_TABLE(V, F)                                                                                       \
    {.name = #V,                                                                                                       \
     .gemm_f32 = {[MIMO_PACK_F32] = mimo_##F##_gemm_f32_f32,                                                           \
                  [MIMO_PACK_BF16] = mimo_##F##_gemm_f32_bf16,                                                         \
                  [MIMO_PACK_FP8] = mimo_##F##_gemm_f32_fp8,                                                           \
                  [MIMO_PACK_MXFP4] = mimo_##F##_gemm_f32_mxfp4},                                                      \
     .gemm_q8 = {[MIMO_PACK_MXFP4] = mimo_##V##_gemm_q8_mxfp4,                                                         \
                 [MIMO_PACK_Q8] = mimo_##V##_gemm_q8_q8,                                                               \
                 [MIMO_PACK_Q4] = mimo_##V##_gemm_q8_q4},                                                              \
     .rms_norm = mimo_##F##_rms_norm,                                                                                  \
     .quantize = mimo_##F##_quantize,                                                                                  \
     .swiglu = mimo_##F##_swiglu,                                                                                      \
     .rope = mimo_##F##_rope,                                                                                          \
     .attend_f32 = mimo_##F##_attend_f32,                                                                              \
     .attend_bf16 = mimo_##F##_attend_bf16}

#endif
