#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

mimo_status mimo_error_set(mimo_error *err, mimo_status code, const char *file, int line, const char *format, ...)
{
    if (err == NULL || err->code != MIMO_OK)
        return code;
    err->code = code;
    err->file = file;
    err->line = line;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->text, sizeof err->text, format, arguments);
    va_end(arguments);
    return code;
}
