#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/vec8.h"

#define MIMO_KERNEL(name) mimo_avx2_##name
#include "cpu/lanes/attention.h"
