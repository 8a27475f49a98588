/* AVX-512 VNNI in registers of 256 bits, of which there are 32. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/codes_x86.h"

#define DPBUSD(sum, w, x) _mm256_dpbusd_epi32(sum, w, x)
#include "cpu/lanes/vnni_x86.h"

#define MIMO_KERNEL(name) mimo_avx512_##name
#include "cpu/lanes/gemm_q8.h"
