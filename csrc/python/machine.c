/* Functions of _core that measure the machine, or say what it has. */
#include <string.h>

#include "cpu/measure.h"
#include "cuda/device.h"
#include "python/module.h"

static PyObject *read_bandwidth(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"bytes", "threads", "seconds", NULL};
    Py_ssize_t bytes, threads;
    double seconds, rate = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nnd:read_bandwidth", names, &bytes, &threads, &seconds))
        return NULL;
    if (bytes < 0 || threads < 0)
        return PyErr_Format(PyExc_ValueError, "%s: expected 1 or more, found %zd", bytes < 0 ? "bytes" : "threads",
                            bytes < 0 ? bytes : threads);
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_measure_read_bandwidth(&rate, (size_t)bytes, (size_t)threads, seconds, &err);
    Py_END_ALLOW_THREADS
    return status == MIMO_OK ? PyFloat_FromDouble(rate) : mimo_python_raise(&err);
}

static PyObject *int8_peak(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"threads", "seconds", NULL};
    Py_ssize_t threads;
    double seconds, rate = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nd:int8_peak", names, &threads, &seconds))
        return NULL;
    if (threads < 0)
        return PyErr_Format(PyExc_ValueError, "threads: expected 1 or more, found %zd", threads);
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_measure_int8_peak(&rate, (size_t)threads, seconds, &err);
    Py_END_ALLOW_THREADS
    return status == MIMO_OK ? PyFloat_FromDouble(rate) : mimo_python_raise(&err);
}

static PyObject *cuda_devices(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    char names[16][128];
    size_t count = 0;
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_cuda_list(names, sizeof names / sizeof *names, &count, &err);
    Py_END_ALLOW_THREADS
    if (status != MIMO_OK)
        return mimo_python_raise(&err);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count && i < sizeof names / sizeof *names; i++) {
        PyObject *name = PyUnicode_DecodeUTF8(names[i], (Py_ssize_t)strlen(names[i]), "replace");
        if (name == NULL || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

PyMethodDef mimo_machine_methods[] = {
    {"read_bandwidth", (PyCFunction)(void (*)(void))read_bandwidth, METH_VARARGS | METH_KEYWORDS,
     "read_bandwidth(bytes, threads, seconds)\n--\n\nBytes per second that threads read together."},
    {"int8_peak", (PyCFunction)(void (*)(void))int8_peak, METH_VARARGS | METH_KEYWORDS,
     "int8_peak(threads, seconds)\n--\n\n8-bit products per second that threads compute together."},
    {"cuda_devices", (PyCFunction)cuda_devices, METH_NOARGS,
     "cuda_devices()\n--\n\nNames of the GPUs here; NotImplementedError says why there are none."},
    {NULL, NULL, 0, NULL},
};
