/* What the machine makes of products of warp groups (wgmma.c). */
#include <stdint.h>

#define WORDS4(v) "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])

__device__ void product(float (&d)[16], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
                 "%12, %13, %14, %15}, {%16, %17, %18, %19}, %20, 1, 1, 1;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : WORDS4(a), "l"(b));
}

/* Which rule is broken. */
enum { FENCE = 1, PROXY, WAIT, BARRIER, COLUMNS, EARLY, SWIZZLE };

/* D [64, 32] = C + twice A [64, 32] B [32 columns, 32 of K]; B is in shared memory as core matrices, `gap` bytes longer
 * than they are: one warp group. */
extern "C" __global__ void groups(float *D, const uint8_t *A, const uint8_t *B, const float *C, uint32_t gap, uint32_t broken)
{
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4, part = 128 + gap;
    const uint32_t n = threadIdx.x % 32, quarter = warp; /* a thread writes 8 bytes of a column */
    const uint32_t at = n / 8 * 2 * part + quarter / 2 * part + n % 8 * 16 + quarter % 2 * 8;
    *reinterpret_cast<uint2 *>(shared + at) = *reinterpret_cast<const uint2 *>(B + n * 32 + quarter * 8);
    if (broken != PROXY)
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    if (broken != BARRIER)
        __syncthreads();
    uint32_t a[4];
    float d[16];
    for (uint32_t i = 0; i < 4; i++)
        a[i] = *reinterpret_cast<const uint32_t *>(A + (16 * warp + g + 8 * (i % 2)) * 32 + 4 * c + 16 * (i / 2));
    for (uint32_t i = 0; i < 16; i++)
        d[i] = C[(16 * warp + g + 8 * (i / 2 % 2)) * 32 + 8 * (i / 4) + 2 * c + i % 2];
    uint64_t b = (uint64_t)(2 * part / 16) << 32 | (uint64_t)(part / 16) << 16 | (uint32_t)__cvta_generic_to_shared(shared) >> 4;
    if (broken == COLUMNS && warp == 2)
        b += 1;
    if (broken == SWIZZLE)
        b |= 1ull << 62;
    if (broken != FENCE)
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    product(d, a, b);
    product(d, a, b);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (broken != WAIT && broken != EARLY)
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (uint32_t i = 0; i < 16; i++)
        D[(16 * warp + g + 8 * (i / 2 % 2)) * 32 + 8 * (i / 4) + 2 * c + i % 2] = d[i];
    if (broken == EARLY)
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

extern "C" __global__ void narrowest(uint16_t *to, const float *from)
{
    const uint32_t i = threadIdx.x;
    uint16_t both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(from[2 * i + 1]), "f"(from[2 * i]));
    to[i] = both;
}
