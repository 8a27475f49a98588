/* The types of _core and the module state that holds them; _probe has copies of its own. */
#include "python/module.h"

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0) {
        Py_DECREF((PyObject *)type);
        return NULL;
    }
    return type;
}

int mimo_python_add_types(PyObject *module)
{
    mimo_module_state *state = PyModule_GetState(module);
    state->engine_type = add_type(module, &mimo_engine_spec);
    state->job_type = state->engine_type != NULL ? add_type(module, &mimo_job_spec) : NULL;
    state->rank_type = state->job_type != NULL ? add_type(module, &mimo_rank_spec) : NULL;
    return state->rank_type != NULL ? 0 : -1;
}

int mimo_python_state_traverse(PyObject *module, visitproc visit, void *arg)
{
    mimo_module_state *state = PyModule_GetState(module);
    Py_VISIT(state->engine_type);
    Py_VISIT(state->job_type);
    Py_VISIT(state->rank_type);
    return 0;
}

int mimo_python_state_clear(PyObject *module)
{
    mimo_module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->engine_type);
    Py_CLEAR(state->job_type);
    Py_CLEAR(state->rank_type);
    return 0;
}

void mimo_python_state_free(void *module)
{
    mimo_python_state_clear(module);
}
