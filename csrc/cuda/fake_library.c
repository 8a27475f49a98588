#include "cuda/fake_library.h"

#include <dlfcn.h>
#include <string.h>

/* A function pointer, as dlsym gives it. */
static bool find(void *handle, void *function, const char *name)
{
    void *found = dlsym(handle, name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

mimo_status mimo_cuda_fake_library_open(mimo_cuda_fake_library *library, const char *path, mimo_error *err)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "kernels: %s", dlerror());
    *library = (mimo_cuda_fake_library){.handle = handle};
    if (!find(handle, &library->kernels.memory, "ptx_memory") ||
        !find(handle, &library->kernels.launch, "ptx_launch") || !find(handle, &library->kernels.fault, "ptx_fault") ||
        !find(handle, &library->set, "ptx_set") || !find(handle, &library->counts, "ptx_counts"))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "kernels: %s: expected a library made by tests/ptx", path);
    return MIMO_OK;
}
