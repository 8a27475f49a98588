#include "cpu/variants.h"

#include "cpu/lanes/neon.h"
#include "cpu/lanes/vec8.h"

#define MIMO_KERNEL(name) mimo_neon_##name
#include "cpu/lanes/attention.h"
