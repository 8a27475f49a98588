/* AVX-VNNI: the instruction of AVX-512 VNNI for processors with AVX2 registers only. All other kernels are avx2's. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/codes_x86.h"

#define DPBUSD(sum, w, x) _mm256_dpbusd_avx_epi32(sum, w, x)
#include "cpu/lanes/vnni_x86.h"

#include "cpu/lanes/gemm_q8.h"

MIMO_GEMM_Q8_KERNELS(avxvnni, body_mxfp4, body_q8, body_q4)
