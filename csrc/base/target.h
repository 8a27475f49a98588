/* Functions that a CUDA compiler makes for the device: MIMO_HD for the host as well, MIMO_BODY for the device alone.
 * Another compiler makes both for the host. */
#ifndef MIMO_BASE_TARGET_H
#define MIMO_BASE_TARGET_H

#ifdef __CUDACC__
#define MIMO_HD __host__ __device__
#define MIMO_BODY __device__
#define MIMO_BODY_HERE __device__ __forceinline__ /* within its caller, whose objects then need no address */
#else
#define MIMO_HD
#define MIMO_BODY
#define MIMO_BODY_HERE inline
#endif

#endif
