/* Counters of operations, kept only while somebody asks for them. */
#ifndef MIMO_CPU_PROFILE_H
#define MIMO_CPU_PROFILE_H

#include "cpu/cpu.h"

/* A worker began the operation, was done with its share, and left the barrier after it. */
void mimo_profile_op(mimo_cpu *cpu, const mimo_op *op, size_t worker, uint64_t begin, uint64_t done, uint64_t end);
/* Counts what the operation read and multiplied: once, by the last worker that is done with it. */
void mimo_profile_count(mimo_cpu *cpu, const mimo_op *op);

void mimo_cpu_set_profile(mimo_backend *self, bool on);
void mimo_cpu_read_profile(const mimo_backend *self, mimo_profile *target, mimo_profile *drafter);

#endif
