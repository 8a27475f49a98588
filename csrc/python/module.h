/* State and types of _core. */
#ifndef MIMO_PYTHON_MODULE_H
#define MIMO_PYTHON_MODULE_H

#include "engine/engine.h"
#include "python/convert.h"

typedef struct mimo_module_state {
    PyTypeObject *engine_type, *job_type, *rank_type;
} mimo_module_state;

extern PyType_Spec mimo_engine_spec;       /* engine_type.c */
extern PyType_Spec mimo_job_spec;          /* job_type.c */
extern PyType_Spec mimo_rank_spec;         /* rank_type.c */
extern PyMethodDef mimo_codec_methods[];   /* codec.c */
extern PyMethodDef mimo_machine_methods[]; /* machine.c */

/* Fills the state of a module whose m_size is sizeof(mimo_module_state), and the slots that go with it. */
int mimo_python_add_types(PyObject *module);
int mimo_python_state_traverse(PyObject *module, visitproc visit, void *arg);
int mimo_python_state_clear(PyObject *module);
void mimo_python_state_free(void *module);

/* Token ids as uint32 in memory of mimo_alloc; NULL with an exception. */
uint32_t *mimo_python_token_ids(PyObject *sequence, const char *name, size_t *count);
/* Engine.submit. */
PyObject *mimo_python_submit(PyObject *self, mimo_engine *engine, PyObject *args, PyObject *kwargs);

/* The Job object of `job` (now its owner), which keeps `engine` alive. */
PyObject *mimo_python_job(PyTypeObject *type, PyObject *engine, mimo_job *job);

/* The engine of an Engine object, for _probe. */
mimo_engine *mimo_python_engine(PyObject *engine);

#endif
