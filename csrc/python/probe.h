/* The parts of _probe, one per room; each table ends with {NULL}. */
#ifndef MIMO_PYTHON_PROBE_H
#define MIMO_PYTHON_PROBE_H

#include "python/convert.h"
#include "sample/sample.h"

extern PyMethodDef mimo_probe_base_methods[];   /* probe_base.c: failing allocations, counters */
extern PyMethodDef mimo_probe_format_methods[]; /* probe_format.c: bf16, fp8, mxfp4, panels */
extern PyMethodDef mimo_probe_kernel_methods[]; /* probe_kernels.c: every kernel of every variant */
extern PyMethodDef mimo_probe_sample_methods[]; /* probe_sample.c: philox, gumbel, sampling */
extern PyMethodDef mimo_probe_draft_methods[];  /* probe_draft.c: steps of a drafter */
extern PyMethodDef mimo_probe_dflash_methods[]; /* probe_dflash.c: verification, lookup, widths */
extern PyMethodDef mimo_probe_lower_methods[];  /* probe_lower.c: queues of tile tasks */
extern PyMethodDef mimo_probe_bodies_methods[]; /* probe_bodies.c: operation bodies on the host, where they are built */
extern PyMethodDef mimo_probe_machine_methods[]; /* probe_machine.c: the resident engine on the host, likewise */
extern PyMethodDef mimo_probe_device_methods[];  /* probe_device.c: a made-up CUDA driver, where bodies are built */

/* Reads a dict of options; absent keys are off. 0, or -1 with an exception. */
int mimo_probe_sampling(mimo_sampling *out, PyObject *dict);

#endif
