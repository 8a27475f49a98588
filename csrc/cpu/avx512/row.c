/* The bodies of AVX2, compiled for AVX-512: 32 registers and no other change. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"

#define MIMO_KERNEL(name) mimo_avx512_##name
#include "cpu/lanes/row.h"
