/* mimo_ultraspeed._core: multi-phase initialisation, one state struct, no globals. */
#include "python/module.h"

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0) {
        Py_DECREF(type);
        return NULL;
    }
    return type;
}

static int core_exec(PyObject *module)
{
    mimo_module_state *state = PyModule_GetState(module);
    if (mimo_python_import_numpy() < 0)
        return -1;
    state->engine_type = add_type(module, &mimo_engine_spec);
    state->job_type = state->engine_type != NULL ? add_type(module, &mimo_job_spec) : NULL;
    if (state->job_type == NULL || PyModule_AddFunctions(module, mimo_codec_methods) < 0)
        return -1;
    PyObject *all = Py_BuildValue("[sssss]", "Engine", "Job", "cpu_variants", "mxfp4_decode", "mxfp4_encode");
    const int failed = all == NULL || PyModule_AddObjectRef(module, "__all__", all) < 0;
    Py_XDECREF(all);
    return failed ? -1 : 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    mimo_module_state *state = PyModule_GetState(module);
    Py_VISIT(state->engine_type);
    Py_VISIT(state->job_type);
    return 0;
}

static int core_clear(PyObject *module)
{
    mimo_module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->engine_type);
    Py_CLEAR(state->job_type);
    return 0;
}

static void core_free(void *module)
{
    core_clear(module);
}

static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mimo_ultraspeed._core",
    .m_doc = "The C core: a checked model, its resident engine, and the decode loop.",
    .m_size = sizeof(mimo_module_state),
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
