/* What this machine can do at most, measured with the engine's own worker threads: the scale that profiles are read
 * on. */
#ifndef MIMO_CPU_MEASURE_H
#define MIMO_CPU_MEASURE_H

#include <stddef.h>

#include "base/status.h"

/* Bytes per second that `threads` workers read in `seconds`, each over and over its share of `bytes`, which are
 * allocated for it: take several times the last-level cache. */
MIMO_MUST_CHECK mimo_status mimo_measure_read_bandwidth(double *out, size_t bytes, size_t threads, double seconds,
                                                        mimo_error *err);

/* Products of 8-bit integers per second that `threads` workers multiply and add in registers in `seconds`, with the
 * best instructions that kernels have here (AVX-512 VNNI, AVX-VNNI, AVX2 maddubs, NEON dot product);
 * MIMO_ERR_UNSUPPORTED without any of them. */
MIMO_MUST_CHECK mimo_status mimo_measure_int8_peak(double *out, size_t threads, double seconds, mimo_error *err);

#endif
