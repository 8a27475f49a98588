#define MIMO_IMPORTS_ARRAY
#include "python/convert.h"

#include <string.h>

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

/* The class of mimo_ultraspeed.errors or of Python that err.code stands for: a new reference. */
static PyObject *exception_class(const mimo_error *err)
{
    const char *name = class_name(err->code);
    if (name != NULL) {
        PyObject *module = PyImport_ImportModule("mimo_ultraspeed.errors");
        PyObject *type = module != NULL ? PyObject_GetAttrString(module, name) : NULL;
        Py_XDECREF(module);
        return type;
    }
    return Py_NewRef(err->code == MIMO_ERR_NOMEM         ? PyExc_MemoryError
                     : err->code == MIMO_ERR_IO          ? PyExc_OSError
                     : err->code == MIMO_ERR_UNSUPPORTED ? PyExc_NotImplementedError
                                                         : PyExc_ValueError);
}

PyObject *mimo_python_raise(const mimo_error *err)
{
    /* Names and paths in the text are the checkpoint's and the user's bytes, and the text may have been cut within a
     * character. */
    PyObject *text = PyUnicode_DecodeUTF8(err->text, (Py_ssize_t)strlen(err->text), "replace");
    PyObject *type = text != NULL ? exception_class(err) : NULL;
    if (type != NULL && err->code == MIMO_ERR_IO && err->system_code != 0) {
        PyObject *value =
            PyObject_CallFunction(type, "iO", err->system_code, text); /* FileNotFoundError and its like */
        if (value != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(value), value);
        Py_XDECREF(value);
    } else if (type != NULL) {
        PyErr_SetObject(type, text);
    }
    Py_XDECREF(type);
    Py_XDECREF(text);
    return NULL;
}

/* A ValueError or TypeError that is set gets `name` in front; others stay. */
static void name_error(const char *name)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    PyErr_NormalizeException(&kind, &value, &trace);
    if (PyErr_GivenExceptionMatches(kind, PyExc_TypeError) || PyErr_GivenExceptionMatches(kind, PyExc_ValueError)) {
        PyErr_Format(PyErr_GivenExceptionMatches(kind, PyExc_TypeError) ? PyExc_TypeError : PyExc_ValueError, "%s: %S",
                     name, value);
        Py_XDECREF(kind);
        Py_XDECREF(value);
        Py_XDECREF(trace);
    } else {
        PyErr_Restore(kind, value, trace);
    }
}

static int is_integer(int type)
{
    return PyTypeNum_ISINTEGER(type);
}

PyArrayObject *mimo_python_array(PyObject *obj, int type, int rank, const char *name)
{
    /* First as what it is, so that a float never turns into an integer, then as what is wanted. */
    PyArrayObject *given = (PyArrayObject *)PyArray_FROM_O(obj);
    if (given == NULL) {
        name_error(name);
        return NULL;
    }
    PyObject *array = NULL;
    if (PyArray_NDIM(given) != rank)
        PyErr_Format(PyExc_ValueError, "%s: expected %d dimension%s, found %d", name, rank, rank == 1 ? "" : "s",
                     PyArray_NDIM(given));
    else if (is_integer(type) && !is_integer(PyArray_TYPE(given)) && PyArray_SIZE(given) > 0)
        PyErr_Format(PyExc_TypeError, "%s: expected integers, found %S", name, (PyObject *)PyArray_DESCR(given));
    else if ((array = PyArray_FROMANY((PyObject *)given, type, rank, rank,
                                      NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST)) == NULL)
        name_error(name);
    Py_DECREF((PyObject *)given);
    return (PyArrayObject *)array;
}

static int add_node(mimo_nodes *out, PyObject *node)
{
    const Py_ssize_t cores = PySequence_Size(node);
    for (Py_ssize_t i = 0; i < cores; i++) {
        PyObject *number = PySequence_GetItem(node, i);
        const long core = number != NULL ? PyLong_AsLong(number) : -1;
        Py_XDECREF(number);
        if (core == -1 && PyErr_Occurred() != NULL)
            return -1;
        if (core < 0 || core >= MIMO_MAX_CORES) {
            PyErr_Format(PyExc_ValueError, "nodes: expected cores from 0 to %d, found %ld", MIMO_MAX_CORES - 1, core);
            return -1;
        }
        out->cores[out->count][core / 64] |= (uint64_t)1 << core % 64;
    }
    out->count++;
    return cores < 0 ? -1 : 0;
}

int mimo_python_nodes(mimo_nodes *out, PyObject *nodes)
{
    *out = (mimo_nodes){0};
    const Py_ssize_t count = PySequence_Size(nodes);
    if (count > MIMO_MAX_NODES)
        PyErr_Format(PyExc_ValueError, "nodes: expected at most %d, found %zd", MIMO_MAX_NODES, count);
    if (count < 0 || count > MIMO_MAX_NODES)
        return -1;
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *node = PySequence_GetItem(nodes, n);
        const int status = node != NULL ? add_node(out, node) : -1;
        Py_XDECREF(node);
        if (status < 0)
            return -1;
    }
    return 0;
}
