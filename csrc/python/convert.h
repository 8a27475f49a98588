/* What every file of this room includes: the limited Python API, NumPy's, and errors turned into exceptions. */
#ifndef MIMO_PYTHON_CONVERT_H
#define MIMO_PYTHON_CONVERT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdio.h> /* NumPy's headers use FILE, which the limited Python.h does not bring */

#define PY_ARRAY_UNIQUE_SYMBOL mimo_array_api
#ifndef MIMO_IMPORTS_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "base/pool.h"
#include "base/status.h"

/* import_array(), once per module object; -1 with an exception set. */
int mimo_python_import_numpy(void);

/* Sets the exception that err.code stands for and returns NULL. Classes of mimo_ultraspeed.errors are used where there
 * is one. */
PyObject *mimo_python_raise(const mimo_error *err);

/* obj as a C-contiguous, aligned array of `type` (NPY_*) with `rank` dimensions (a new reference), or NULL with a
 * ValueError or TypeError that starts with `name`. Integers are made of integers only (an empty sequence passes). A
 * copy is made only if needed. */
PyArrayObject *mimo_python_array(PyObject *obj, int type, int rank, const char *name);

/* *out = nodes given as sequences of the numbers of their cores; -1 with an exception set. */
int mimo_python_nodes(mimo_nodes *out, PyObject *nodes);

#endif
