#include <string.h>

#include "base/alloc.h"
#include "cuda/moe.h"
#include "python/probe.h"

/* A new array with a copy of count elements, or NULL with an exception. */
static PyObject *array_of(const void *from, size_t count, int type)
{
    npy_intp size = (npy_intp)count;
    PyObject *array = PyArray_SimpleNew(1, &size, type);
    if (array != NULL)
        memcpy(PyArray_DATA((PyArrayObject *)array), from, (size_t)PyArray_NBYTES((PyArrayObject *)array));
    return array;
}

/* moe_sort(chosen, weight, order): chosen [T, K] uint16 and weight [T, K] float32, their entries placed in the given
 * order [T*K] -> (expert [n], begin [n + 1], row [T*K], weight [T*K]). */
static PyObject *moe_sort(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *chosen_obj, *weight_obj, *order_obj, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO:moe_sort", &chosen_obj, &weight_obj, &order_obj))
        return NULL;
    PyArrayObject *chosen = mimo_python_array(chosen_obj, NPY_UINT16, 2, "chosen");
    PyArrayObject *weight = chosen != NULL ? mimo_python_array(weight_obj, NPY_FLOAT, 2, "weight") : NULL;
    PyArrayObject *order = weight != NULL ? mimo_python_array(order_obj, NPY_UINT32, 1, "order") : NULL;
    mimo_moe *moe = NULL;
    if (order == NULL)
        goto done;
    const uint32_t entries = (uint32_t)PyArray_SIZE(chosen), K = (uint32_t)PyArray_DIM(chosen, 1);
    if (entries > MIMO_MOE_ENTRIES || PyArray_SIZE(weight) != entries || PyArray_SIZE(order) != entries) {
        PyErr_SetString(PyExc_ValueError, "expected chosen and weight [T, K], order [T*K]");
        goto done;
    }
    mimo_error err = {0};
    if (mimo_alloc_array(&moe, 1, sizeof *moe, "a router's choice", &err) != MIMO_OK) {
        mimo_python_raise(&err);
        goto done;
    }
    uint8_t first[MIMO_MOE_ENTRIES];
    const uint32_t *at = PyArray_DATA(order);
    for (uint32_t i = 0; i < entries; i++)
        mimo_moe_mark(first, PyArray_DATA(chosen), at[i] % entries);
    for (uint32_t i = 0; i < entries; i++)
        mimo_moe_place(moe, first, PyArray_DATA(chosen), PyArray_DATA(weight), entries, K, at[i] % entries);
    result = Py_BuildValue("(NNNN)", array_of(moe->expert, moe->experts, NPY_UINT16),
                           array_of(moe->begin, moe->experts + 1, NPY_UINT16), array_of(moe->row, entries, NPY_UINT8),
                           array_of(moe->weight, entries, NPY_FLOAT));
done:
    mimo_free(moe);
    Py_XDECREF((PyObject *)order);
    Py_XDECREF((PyObject *)weight);
    Py_XDECREF((PyObject *)chosen);
    return result;
}

PyMethodDef mimo_probe_cuda_methods[] = {
    {"moe_sort", moe_sort, METH_VARARGS, "chosen, weight, order -> (expert, begin, row, weight)"},
    {NULL, NULL, 0, NULL},
};
