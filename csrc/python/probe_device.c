/* The CUDA backend's host side: a driver made up for tests. */
#include "cuda/fake.h"
#include "python/module.h"
#include "python/probe.h"

static PyObject *cuda_fake(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"memory",  "processors",  "devices",       "init_result", "module_result",
                            "fail_at", "fail_result", "fail_for_good", NULL};
    mimo_cuda_fake_options o = {0};
    unsigned long long memory = 0, fail_at = 0;
    unsigned int processors = 3, devices = 1;
    int for_good = 0;
    o.fail_result = 700;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$KIIiiKip:cuda_fake", names, &memory, &processors, &devices,
                                     &o.init_result, &o.module_result, &fail_at, &o.fail_result, &for_good))
        return NULL;
    o.memory = memory;
    o.processors = processors;
    o.devices = devices;
    o.fail_at = fail_at;
    o.fail_for_good = for_good != 0;
    mimo_cuda_fake_use(memory > 0 ? &o : NULL);
    Py_RETURN_NONE;
}

static PyObject *cuda_fake_stats(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    const mimo_cuda_fake_stats s = mimo_cuda_fake_read_stats();
    return Py_BuildValue("{sK sK sK sK sK sK sK sK}", "calls", s.calls, "launches", s.launches, "graphs", s.graphs,
                         "copied_in", s.copied_in, "copied_out", s.copied_out, "live_bytes", s.live_bytes,
                         "live_blocks", s.live_blocks, "live_handles", s.live_handles);
}

PyMethodDef mimo_probe_device_methods[] = {
    {"cuda_fake", (PyCFunction)(void (*)(void))cuda_fake, METH_VARARGS | METH_KEYWORDS,
     "cuda_fake(*, memory=0, processors=3, devices=1, init_result=0, module_result=0, fail_at=0, fail_result=700, "
     "fail_for_good=False)\n--\n\nA driver of the host in the place of CUDA's; memory=0: the system's again."},
    {"cuda_fake_stats", (PyCFunction)cuda_fake_stats, METH_NOARGS, "cuda_fake_stats()\n--\n\nWhat it counted."},
    {NULL, NULL, 0, NULL},
};
