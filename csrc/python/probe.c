/* mimo_ultraspeed._probe: internals by name, for the tests. The package never imports it. Its Engine is linked to its
 * own allocator, so that tests can make allocations fail. */
#include "python/probe.h"
#include "python/module.h"

#if MIMO_HAVE_HOST_BODIES
static int has_fma(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}
#endif

static int probe_exec(PyObject *module)
{
    if (mimo_python_import_numpy() < 0 || mimo_python_add_types(module) < 0)
        return -1;
    PyMethodDef *const rooms[] = {mimo_probe_base_methods,   mimo_probe_format_methods, mimo_probe_kernel_methods,
                                  mimo_probe_sample_methods, mimo_probe_draft_methods,  mimo_probe_dflash_methods,
                                  mimo_probe_lower_methods};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
        if (PyModule_AddFunctions(module, rooms[i]) < 0)
            return -1;
#if MIMO_HAVE_HOST_BODIES
    if (has_fma() && (PyModule_AddFunctions(module, mimo_probe_bodies_methods) < 0 ||
                      PyModule_AddFunctions(module, mimo_probe_machine_methods) < 0 ||
                      PyModule_AddFunctions(module, mimo_probe_device_methods) < 0))
        return -1;
#endif
    return 0;
}

static PyModuleDef_Slot probe_slots[] = {{Py_mod_exec, probe_exec}, {0, NULL}};

static struct PyModuleDef probe_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mimo_ultraspeed._probe",
    .m_doc = "Internals of the core, by name, for the tests.",
    .m_size = sizeof(mimo_module_state),
    .m_slots = probe_slots,
    .m_traverse = mimo_python_state_traverse,
    .m_clear = mimo_python_state_clear,
    .m_free = mimo_python_state_free,
};

PyMODINIT_FUNC PyInit__probe(void);
PyMODINIT_FUNC PyInit__probe(void)
{
    return PyModuleDef_Init(&probe_module);
}
