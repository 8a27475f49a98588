#include "base/alloc.h"
#include "base/file.h"
#include "python/probe.h"

static PyObject *probe_alloc_fail(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long n;
    int persistent = 0;
    if (!PyArg_ParseTuple(args, "K|p", &n, &persistent))
        return NULL;
    mimo_alloc_fail(n, persistent != 0);
    Py_RETURN_NONE;
}

static PyObject *probe_alloc_freeze(PyObject *module, PyObject *frozen)
{
    (void)module;
    const int value = PyObject_IsTrue(frozen);
    if (value < 0)
        return NULL;
    mimo_alloc_freeze(value != 0);
    Py_RETURN_NONE;
}

static PyObject *probe_alloc_stats(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    const mimo_alloc_stats stats = mimo_alloc_read_stats();
    return Py_BuildValue("{sKsKsKsKsK}", "live_bytes", (unsigned long long)stats.live_bytes, "peak_bytes",
                         (unsigned long long)stats.peak_bytes, "live_blocks", (unsigned long long)stats.live_blocks,
                         "calls", (unsigned long long)stats.calls, "refused", (unsigned long long)stats.refused);
}

static PyObject *probe_alloc_reset_peak(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    mimo_alloc_reset_peak();
    Py_RETURN_NONE;
}

static PyObject *probe_alloc_array(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long count, size;
    if (!PyArg_ParseTuple(args, "KK", &count, &size))
        return NULL;
    unsigned char *block;
    mimo_error err = {0};
    if (mimo_alloc_array(&block, (size_t)count, (size_t)size, "a probe", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    unsigned char any = 0;
    for (size_t i = 0; i < (size_t)(count * size); i++) {
        any |= block[i];
        block[i] = 0xff;
    }
    const int aligned = (uintptr_t)block % 64 == 0;
    mimo_free(block);
    return Py_BuildValue("(OO)", aligned ? Py_True : Py_False, any == 0 ? Py_True : Py_False);
}

static PyObject *probe_file_read(PyObject *module, PyObject *args)
{
    (void)module;
    const char *path;
    unsigned long long offset;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "sKn", &path, &offset, &bytes))
        return NULL;
    mimo_file file;
    mimo_error err = {0};
    if (mimo_file_open(&file, path, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    char *block = mimo_alloc((size_t)bytes);
    PyObject *result = NULL;
    if (block == NULL)
        PyErr_NoMemory();
    else if (mimo_file_read(&file, block, offset, (size_t)bytes, &err) != MIMO_OK)
        mimo_python_raise(&err);
    else
        result = PyBytes_FromStringAndSize(block, bytes);
    mimo_free(block);
    mimo_file_close(&file);
    return result;
}

PyMethodDef mimo_probe_base_methods[] = {
    {"alloc_fail", probe_alloc_fail, METH_VARARGS,
     "n, persistent=False: the n-th allocation from now fails; 0 turns it off"},
    {"alloc_freeze", probe_alloc_freeze, METH_O, "refuse allocations of this thread, or stop refusing them"},
    {"alloc_stats", probe_alloc_stats, METH_NOARGS, "-> dict of live_bytes, peak_bytes, live_blocks, calls, refused"},
    {"alloc_reset_peak", probe_alloc_reset_peak, METH_NOARGS, "peak_bytes = live_bytes"},
    {"alloc_array", probe_alloc_array, METH_VARARGS, "count, size -> (is aligned, was zero); the block is freed"},
    {"file_read", probe_file_read, METH_VARARGS, "path, offset, bytes -> bytes"},
    {NULL, NULL, 0, NULL},
};
