/* Small kernels that keep or break a rule of the device, for tests of the machine that runs their PTX. */
#include <stdint.h>

#define KERNEL extern "C" __global__ void __launch_bounds__(256)

__device__ uint32_t shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

/* ---- rules; broken: which part of them is left out ---- */

KERNEL neighbours(uint32_t *to, uint32_t broken)
{
    __shared__ uint32_t all[256];
    all[threadIdx.x] = threadIdx.x;
    if (broken != 1)
        __syncthreads();
    to[threadIdx.x] = all[(threadIdx.x + 40) % blockDim.x];
    if (broken != 2)
        __syncthreads();
    all[threadIdx.x] = 0; /* others have read it */
}

KERNEL lanes(uint32_t *to, uint32_t broken)
{
    __shared__ uint32_t all[256];
    all[threadIdx.x] = threadIdx.x;
    if (broken != 1)
        __syncwarp();
    to[threadIdx.x] = all[threadIdx.x ^ 1];
}

/* The last CTA adds what all have written. */
KERNEL last_one(uint32_t *to, uint32_t *part, uint32_t *counter, uint32_t broken)
{
    __shared__ uint32_t before;
    part[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x + blockIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) {
        if (broken == 1)
            asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
        else
            asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    }
    __syncthreads();
    if (before + 1 != gridDim.x)
        return;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x; i++)
        sum += part[i * blockDim.x + threadIdx.x];
    to[threadIdx.x] = sum;
}

/* Sums and maxima of whole warps. */
KERNEL reduced(uint32_t *to, const uint32_t *of)
{
    to[threadIdx.x] = __reduce_add_sync(0xffffffffu, of[threadIdx.x]);
    to[blockDim.x + threadIdx.x] = __reduce_max_sync(0xffffffffu, of[threadIdx.x]);
}

KERNEL some_meet(uint32_t *to, uint32_t broken)
{
    if (threadIdx.x < 64 || broken != 1)
        asm volatile("bar.sync 3, %0;" ::"r"(broken == 2 && threadIdx.x < 32 ? 64u : blockDim.x) : "memory");
    to[threadIdx.x] = 1;
}

/* What threads find out together, of whether each is one of the first `yes`: of all, of any, how many. */
KERNEL all_agree(uint32_t *to, uint32_t yes)
{
    uint32_t all, any, count;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0;\n"
                 "  .reg .pred q; barrier.cta.red.and.pred q, 1, p; selp.u32 %0, 1, 0, q;\n"
                 "  barrier.cta.red.or.pred q, 1, p; selp.u32 %1, 1, 0, q;\n"
                 "  barrier.cta.red.popc.u32 %2, 2, p; }"
                 : "=r"(all), "=r"(any), "=r"(count)
                 : "r"((uint32_t)(threadIdx.x < yes))
                 : "memory");
    to[threadIdx.x] = all | any << 1 | count << 2;
}

KERNEL reaches(uint32_t *to, uint32_t count, uint32_t broken)
{
    extern __shared__ uint32_t dynamic[];
    dynamic[threadIdx.x] = 1;
    if (broken == 1)
        to[count + threadIdx.x] = 1;
    if (broken == 2)
        dynamic[blockDim.x + threadIdx.x] = 1;
    if (broken == 3)
        *reinterpret_cast<uint2 *>(to + 1) = make_uint2(1, 1);
    to[threadIdx.x] = dynamic[threadIdx.x];
}

/* Thread 0 copies pages of 64 words into two places in turn, the others add them up. broken: 1 they do not wait for a page; 2 the
 * copier does not wait for its place; 3 they give a page back before they have read it; 4 it expects other bytes than it copies;
 * 5 it copies to a place that is not aligned. */
KERNEL ring(uint32_t *to, const uint32_t *from, uint32_t pages, uint32_t broken)
{
    __shared__ __align__(128) uint32_t place[2][64];
    __shared__ uint64_t full[2], empty[2];
    const uint32_t readers = blockDim.x - 32;
    if (threadIdx.x < 2) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[threadIdx.x])) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&empty[threadIdx.x])), "r"(readers) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const auto wait = [](const uint64_t *barrier, uint32_t parity) {
        for (uint32_t done = 0; !done;)
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done)
                         : "r"(shared_address(barrier)), "r"(parity)
                         : "memory");
    };
    if (threadIdx.x == 0)
        for (uint32_t page = 0; page < pages; page++) {
            const uint32_t at = page % 2, lap = page / 2;
            if (broken != 2)
                wait(&empty[at], (lap & 1) ^ 1);
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[at])),
                         "r"(broken == 4 ? 128u : 256u)
                         : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 256, [%2];" ::"r"(
                             shared_address(&place[at][broken == 5])),
                         "l"(from + 64 * page), "r"(shared_address(&full[at]))
                         : "memory");
        }
    if (threadIdx.x < 32)
        return;
    uint32_t sum = 0;
    for (uint32_t page = 0; page < pages; page++) {
        const uint32_t at = page % 2, lap = page / 2;
        if (broken != 1)
            wait(&full[at], lap & 1);
        const auto give = [&] {
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&empty[at])) : "memory");
        };
        if (broken == 3)
            give();
        sum += place[at][threadIdx.x % 64];
        if (broken != 3)
            give();
    }
    to[threadIdx.x] = sum;
}

/* ---- values ---- */

KERNEL integers(uint32_t *to, const uint32_t *from)
{
    const uint32_t i = threadIdx.x, a = from[3 * i], b = from[3 * i + 1], c = from[3 * i + 2];
    uint32_t *out = to + 16 * i;
    out[0] = __byte_perm(a, b, c & 0x7777);
    out[1] = a << (b & 31) | a >> (c & 31);
    out[2] = __funnelshift_l(a, b, c);
    out[3] = __funnelshift_r(a, b, c);
    out[4] = __umulhi(a, b);
    out[5] = (uint32_t)((uint64_t)a * b >> 16) + c;
    out[6] = a / (b | 1) + a % (b | 1);
    out[7] = (uint32_t)((int32_t)a >> (c & 31));
    out[8] = __popc(a) + 64 * __clz(b);
    out[9] = min(a, b) ^ max((int32_t)b, (int32_t)c);
    asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(out[10]) : "r"(a), "r"(b), "r"(c & 63), "r"(c >> 8 & 63));
    asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(out[11]) : "r"(a), "r"(b), "r"(c));
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out[12]) : "r"(a), "r"(b), "r"(c & 0xffff));
    out[13] = (uint16_t)a * (uint16_t)b;
    out[14] = (uint32_t)(((uint64_t)a << 32 | b) >> (c & 63));
    out[15] = (a > b) + 2 * ((int32_t)a > (int32_t)b) + 4 * ((a & 7) == (b & 7));
}

KERNEL floats(float *to, const float *from)
{
    const uint32_t i = threadIdx.x;
    const float a = from[3 * i], b = from[3 * i + 1], c = from[3 * i + 2];
    float *out = to + 9 * i;
    out[0] = fmaf(a, b, c);
    out[1] = a / b;
    out[2] = sqrtf(fabsf(a));
    out[3] = fminf(a, b);
    out[4] = fmaxf(a, c);
    out[5] = rintf(b);
    out[6] = (float)(int32_t)a;
    out[7] = (float)((double)a * (double)b + (double)c);
    out[8] = a < b ? 1.0f : a == b ? 2.0f : a > b ? 3.0f : 4.0f;
}

KERNEL narrow(uint32_t *to, const float *from)
{
    const uint32_t i = threadIdx.x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(to[2 * i]) : "f"(from[2 * i + 1]), "f"(from[2 * i]));
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(to[2 * i + 1]) : "r"(to[2 * i]), "r"(0x40804000u)); /* 2, 4 */
}

KERNEL shuffles(uint32_t *to, const uint32_t *from)
{
    const uint32_t i = threadIdx.x, value = from[i];
    to[5 * i] = __shfl_xor_sync(0xffffffffu, value, 5);
    to[5 * i + 1] = __shfl_down_sync(0xffffffffu, value, 3);
    to[5 * i + 2] = __shfl_up_sync(0xffffffffu, value, 7);
    to[5 * i + 3] = __shfl_sync(0xffffffffu, value, (i * 11) % 32);
    to[5 * i + 4] = __ballot_sync(0xffffffffu, value & 1);
}

KERNEL turned(uint32_t *to, const uint32_t *from)
{
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to[threadIdx.x]) : "r"(from[threadIdx.x]));
}

KERNEL powers(float *to, const float *from)
{
    asm("ex2.approx.f32 %0, %1;" : "=f"(to[threadIdx.x]) : "f"(from[threadIdx.x]));
}

/* A [16, 16] row by row, B [8, 16] column by column, C and D [16, 8]: one warp. */
KERNEL product(float *D, const uint16_t *A, const uint16_t *B, const float *C)
{
    uint32_t a[4], b[2];
    float d[4];
    const uint32_t g = threadIdx.x / 4, c = threadIdx.x % 4;
    for (uint32_t i = 0; i < 4; i++)
        a[i] = *reinterpret_cast<const uint32_t *>(A + (g + 8 * (i % 2)) * 16 + 2 * c + 8 * (i / 2));
    for (uint32_t i = 0; i < 2; i++)
        b[i] = *reinterpret_cast<const uint32_t *>(B + g * 16 + 2 * c + 8 * i);
    for (uint32_t i = 0; i < 4; i++)
        d[i] = C[(g + 8 * (i / 2)) * 8 + 2 * c + i % 2];
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    for (uint32_t i = 0; i < 4; i++)
        D[(g + 8 * (i / 2)) * 8 + 2 * c + i % 2] = d[i];
}
