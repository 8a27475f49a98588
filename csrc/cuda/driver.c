#include "cuda/driver.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <string.h>

static const char library_name[] = "libcuda.so.1";

static _Atomic(const mimo_cuda_driver *) replacement;

void mimo_cuda_driver_replace(const mimo_cuda_driver *driver)
{
    atomic_store(&replacement, driver);
}

mimo_status mimo_cuda_check(const mimo_cuda_driver *driver, int result, mimo_status code, const char *what,
                            mimo_error *err)
{
    if (result == 0)
        return MIMO_OK;
    const char *name = NULL, *text = NULL;
    if (driver->error_name(result, &name) != 0 || name == NULL)
        name = "unknown error";
    if (driver->error_text(result, &text) != 0 || text == NULL)
        text = "the driver does not know it";
    if (result == MIMO_CUDA_OUT_OF_MEMORY)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory on the GPU: %s", what);
    return MIMO_FAIL(err, code, "CUDA: %s: %s (%d: %s)", what, name, result, text);
}

static mimo_status find_functions(mimo_cuda_driver *driver, mimo_error *err)
{
    static const struct {
        const char *symbol;
        size_t offset;
    } calls[] = {
#define MIMO_CUDA_CALL(field, symbol, parameters) {(symbol), offsetof(mimo_cuda_driver, field)},
#include "cuda/driver.def"
#undef MIMO_CUDA_CALL
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *function = dlsym(driver->library, calls[i].symbol);
        if (function == NULL)
            return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: %s has no function %s: the driver is too old",
                             library_name, calls[i].symbol);
        memcpy((char *)driver + calls[i].offset, &function, sizeof function);
    }
    return MIMO_OK;
}

static mimo_status open_library(mimo_cuda_driver *driver, mimo_error *err)
{
    *driver = (mimo_cuda_driver){.library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL)};
    if (driver->library == NULL) {
        const char *why = dlerror();
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: no driver of an NVIDIA GPU here (dlopen: %s)",
                         why != NULL ? why : library_name);
    }
    return find_functions(driver, err);
}

mimo_status mimo_cuda_driver_open(mimo_cuda_driver *driver, mimo_error *err)
{
    const mimo_cuda_driver *other = atomic_load(&replacement);
    if (other != NULL)
        *driver = *other;
    mimo_status status = other != NULL ? MIMO_OK : open_library(driver, err);
    if (status == MIMO_OK)
        status = mimo_cuda_check(driver, driver->init(0), MIMO_ERR_UNSUPPORTED, "the driver does not start", err);
    if (status != MIMO_OK)
        mimo_cuda_driver_close(driver);
    return status;
}

void mimo_cuda_driver_close(mimo_cuda_driver *driver)
{
    /* The library stays open: the driver keeps threads and exit handlers of its own. */
    *driver = (mimo_cuda_driver){0};
}
