#include "cpu/variants.h"

#include "cpu/lanes/neon.h"

#define MIMO_KERNEL(name) mimo_neon_##name
#include "cpu/lanes/gemm_f32.h"
