#define MIMO_IMPORTS_ARRAY
#include "python/convert.h"

int mimo_python_import_numpy(void)
{
    return _import_array();
}

static const char *class_name(mimo_status code)
{
    switch (code) {
    case MIMO_ERR_FORMAT:
        return "CheckpointError";
    case MIMO_ERR_CONTEXT:
        return "ContextOverflowError";
    case MIMO_ERR_ENGINE:
        return "EngineError";
    default:
        return NULL;
    }
}

PyObject *mimo_python_raise(const mimo_error *err)
{
    const char *name = class_name(err->code);
    if (name != NULL) {
        PyObject *module = PyImport_ImportModule("mimo_ultraspeed.errors");
        PyObject *type = module != NULL ? PyObject_GetAttrString(module, name) : NULL;
        if (type != NULL)
            PyErr_SetString(type, err->text);
        Py_XDECREF(type);
        Py_XDECREF(module);
        return NULL;
    }
    PyObject *type = err->code == MIMO_ERR_NOMEM         ? PyExc_MemoryError
                     : err->code == MIMO_ERR_IO          ? PyExc_OSError
                     : err->code == MIMO_ERR_UNSUPPORTED ? PyExc_NotImplementedError
                                                         : PyExc_ValueError;
    PyErr_SetString(type, err->text);
    return NULL;
}

PyArrayObject *mimo_python_array(PyObject *obj, int type, int rank, const char *name)
{
    PyObject *array = PyArray_FROMANY(obj, type, rank, rank, NPY_ARRAY_CARRAY_RO);
    if (array != NULL)
        return (PyArrayObject *)array;
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    PyErr_Format(PyErr_GivenExceptionMatches(kind, PyExc_TypeError) ? PyExc_TypeError : PyExc_ValueError, "%s: %S", name,
                 value);
    Py_XDECREF(kind);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return NULL;
}
