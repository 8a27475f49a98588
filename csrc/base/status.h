/* Status codes and error text.
 *
 * Every function of the core that can fail returns a mimo_status (0 is success) and writes one sentence
 * into the caller's mimo_error: the first failure wins. Nothing here prints, exits or aborts. */
#ifndef MIMO_BASE_STATUS_H
#define MIMO_BASE_STATUS_H

typedef enum mimo_status {
    MIMO_OK = 0,
    MIMO_ERR_NOMEM,       /* an allocation failed or would not fit        -> MemoryError */
    MIMO_ERR_VALUE,       /* an argument or a config value is out of range -> ValueError */
    MIMO_ERR_FORMAT,      /* a checkpoint's bytes or shapes are wrong     -> CheckpointError(ValueError) */
    MIMO_ERR_IO,          /* the system could not open or read a file     -> OSError */
    MIMO_ERR_UNSUPPORTED, /* right, but not built or not run here         -> NotImplementedError */
    MIMO_ERR_CONTEXT,     /* more positions than the context allows       -> ContextOverflowError(ValueError) */
    MIMO_ERR_ENGINE,      /* the engine is closed, lost or inconsistent   -> EngineError(RuntimeError) */
} mimo_status;

typedef struct mimo_error {
    mimo_status code;
    const char *file; /* source position of the failure */
    int line;
    int system_code; /* errno of a MIMO_ERR_IO, else 0 */
    char text[480];
} mimo_error;

#define MIMO_MUST_CHECK __attribute__((warn_unused_result))

/* Records a failure (unless err already holds one; err may be NULL) and returns code. */
mimo_status mimo_error_set(mimo_error *err, mimo_status code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

#define MIMO_FAIL(err, code, ...) mimo_error_set((err), (code), __FILE__, __LINE__, __VA_ARGS__)

#define MIMO_TRY(expression)                                                                                           \
    do {                                                                                                               \
        const mimo_status status_ = (expression);                                                                      \
        if (status_ != MIMO_OK)                                                                                        \
            return status_;                                                                                            \
    } while (0)

#endif
