/* Functions of _core that need no engine. */
#include "cpu/kernels.h"
#include "format/mxfp4.h"
#include "python/module.h"

static PyObject *cpu_variants(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    PyObject *out = PyDict_New();
    for (size_t i = 0; out != NULL && mimo_kernel_names[i] != NULL; i++) {
        const char *why = NULL;
        (void)mimo_kernels_find(mimo_kernel_names[i], &why);
        PyObject *reason = Py_BuildValue("z", why);
        if (reason == NULL || PyDict_SetItemString(out, mimo_kernel_names[i], reason) < 0)
            Py_CLEAR(out);
        Py_XDECREF(reason);
    }
    return out;
}

static PyObject *new_array(int type, npy_intp rows, npy_intp cols)
{
    npy_intp shape[2] = {rows, cols};
    return PyArray_SimpleNew(2, shape, type);
}

static int all_finite(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!(values[i] - values[i] == 0.0f))
            return 0;
    return 1;
}

static PyObject *mxfp4_encode(PyObject *self, PyObject *argument)
{
    (void)self;
    PyArrayObject *values = mimo_python_array(argument, NPY_FLOAT32, 2, "values");
    if (values == NULL)
        return NULL;
    const npy_intp rows = PyArray_DIM(values, 0), cols = PyArray_DIM(values, 1);
    const float *data = PyArray_DATA(values);
    PyObject *result = NULL;
    if (cols % MIMO_MX_BLOCK != 0) {
        PyErr_Format(PyExc_ValueError, "values: expected a multiple of 32 columns, found %zd", (Py_ssize_t)cols);
    } else if (!all_finite(data, (size_t)rows * (size_t)cols)) {
        PyErr_SetString(PyExc_ValueError, "values: expected finite numbers, found NaN or infinity");
    } else {
        PyObject *codes = new_array(NPY_UINT8, rows, cols / 2),
                 *scales = new_array(NPY_UINT8, rows, cols / MIMO_MX_BLOCK);
        if (codes != NULL && scales != NULL) {
            Py_BEGIN_ALLOW_THREADS
            mimo_mxfp4_encode(PyArray_DATA((PyArrayObject *)codes), PyArray_DATA((PyArrayObject *)scales), data,
                              (size_t)rows, (size_t)cols);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("OO", codes, scales);
        }
        Py_XDECREF(codes);
        Py_XDECREF(scales);
    }
    Py_DECREF((PyObject *)values);
    return result;
}

static PyObject *mxfp4_decode(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *codes_object, *scales_object;
    if (!PyArg_ParseTuple(arguments, "OO:mxfp4_decode", &codes_object, &scales_object))
        return NULL;
    PyArrayObject *codes = mimo_python_array(codes_object, NPY_UINT8, 2, "codes");
    PyArrayObject *scales = codes != NULL ? mimo_python_array(scales_object, NPY_UINT8, 2, "scales") : NULL;
    PyObject *result = NULL;
    if (scales != NULL) {
        const npy_intp rows = PyArray_DIM(codes, 0), cols = 2 * PyArray_DIM(codes, 1);
        if (cols % MIMO_MX_BLOCK != 0 || PyArray_DIM(scales, 0) != rows ||
            PyArray_DIM(scales, 1) != cols / MIMO_MX_BLOCK)
            PyErr_Format(PyExc_ValueError,
                         "scales: expected shape (%zd, %zd) for %zd columns of codes, found (%zd, %zd)",
                         (Py_ssize_t)rows, (Py_ssize_t)(cols / MIMO_MX_BLOCK), (Py_ssize_t)cols,
                         (Py_ssize_t)PyArray_DIM(scales, 0), (Py_ssize_t)PyArray_DIM(scales, 1));
        else if ((result = new_array(NPY_FLOAT32, rows, cols)) != NULL)
            mimo_mxfp4_decode(PyArray_DATA((PyArrayObject *)result), PyArray_DATA(codes), PyArray_DATA(scales),
                              (size_t)rows, (size_t)cols);
    }
    Py_XDECREF((PyObject *)codes);
    Py_XDECREF((PyObject *)scales);
    return result;
}

PyMethodDef mimo_codec_methods[] = {
    {"cpu_variants", cpu_variants, METH_NOARGS, "cpu_variants()\n--\n\nKernel variants and why one does not run here."},
    {"mxfp4_encode", mxfp4_encode, METH_O,
     "mxfp4_encode(values, /)\n--\n\nfloat32 [rows, cols] to MXFP4 codes and scales."},
    {"mxfp4_decode", mxfp4_decode, METH_VARARGS,
     "mxfp4_decode(codes, scales, /)\n--\n\nMXFP4 codes and scales to float32 [rows, cols]."},
    {NULL, NULL, 0, NULL},
};
