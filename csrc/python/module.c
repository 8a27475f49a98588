/* mimo_ultraspeed._core: multi-phase initialisation, one state struct, no globals. */
#include "python/module.h"

static int core_exec(PyObject *module)
{
    if (mimo_python_import_numpy() < 0 || mimo_python_add_types(module) < 0 ||
        PyModule_AddFunctions(module, mimo_codec_methods) < 0 ||
        PyModule_AddFunctions(module, mimo_machine_methods) < 0)
        return -1;
    PyObject *all = Py_BuildValue("[sssssssss]", "Engine", "Job", "Rank", "cpu_variants", "cuda_devices", "int8_peak",
                                  "mxfp4_decode", "mxfp4_encode", "read_bandwidth");
    const int failed = all == NULL || PyModule_AddObjectRef(module, "__all__", all) < 0;
    Py_XDECREF(all);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mimo_ultraspeed._core",
    .m_doc = "The C core: a checked model, its resident engine, and the decode loop.",
    .m_size = sizeof(mimo_module_state),
    .m_slots = core_slots,
    .m_traverse = mimo_python_state_traverse,
    .m_clear = mimo_python_state_clear,
    .m_free = mimo_python_state_free,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
