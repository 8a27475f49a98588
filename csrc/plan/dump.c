#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "plan/plan.h"

typedef struct writer {
    char *text;
    size_t size, length;
} writer;

__attribute__((format(printf, 2, 3))) static void put(writer *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const bool fits = w->length < w->size;
    const int n = vsnprintf(fits ? w->text + w->length : NULL, fits ? w->size - w->length : 0, format, arguments);
    va_end(arguments);
    w->length += n > 0 ? (size_t)n : 0;
}

/* Number of operations of the layer that starts at op `at`. */
static uint32_t layer_ops(const mimo_plan *plan, uint32_t at)
{
    uint32_t n = 0;
    while (at + n < plan->count && plan->op[at + n].layer == plan->op[at].layer)
        n++;
    return n;
}

static bool alike(const mimo_plan *plan, uint32_t a, uint32_t b, uint32_t ops)
{
    if (b >= plan->count || plan->op[b].layer == MIMO_NO_LAYER || layer_ops(plan, b) != ops)
        return false;
    for (uint32_t i = 0; i < ops; i++)
        if (plan->op[a + i].code != plan->op[b + i].code ||
            memcmp(plan->op[a + i].dim, plan->op[b + i].dim, sizeof plan->op[a].dim) != 0)
            return false;
    return true;
}

static void put_slots(writer *w, uint32_t slots)
{
    static const char *const names[MIMO_SLOTS] = {"tokens", "angles", "x", "q", "kv", "a", "m", "routes", "u", "logits"};
    const char *separator = "";
    for (uint32_t i = 0; i < MIMO_SLOTS; i++)
        if (slots & 1u << i) {
            put(w, "%s%s", separator, names[i]);
            separator = ",";
        }
}

static void put_op(writer *w, const mimo_op *op)
{
    const mimo_op_info *info = &mimo_op_infos[op->code];
    put(w, "  %-12s", info->name);
    const char *letters = info->dims;
    for (uint32_t i = 0; *letters != 0; i++) {
        const size_t length = strcspn(letters, " ");
        put(w, "%.*s=%u ", (int)length, letters, op->dim[i]);
        letters += length + (letters[length] == ' ');
    }
    put(w, "| ");
    put_slots(w, info->reads);
    put(w, " -> ");
    put_slots(w, info->writes);
    put(w, " | %s\n", info->weights);
}

size_t mimo_plan_dump(char *text, size_t size, const mimo_plan *plan)
{
    writer w = {text, size, 0};
    put(&w, "plan: up to %u row%s, %u operations\n", plan->rows, plan->rows == 1 ? "" : "s", plan->count);
    for (uint32_t at = 0; at < plan->count;) {
        const uint32_t ops = layer_ops(plan, at);
        uint32_t next = at + ops;
        if (plan->op[at].layer != MIMO_NO_LAYER) {
            while (alike(plan, at, next, ops))
                next += ops;
            const uint32_t last = plan->op[next - ops].layer;
            if (last == plan->op[at].layer)
                put(&w, "layer %u\n", last);
            else
                put(&w, "layers %u-%u\n", plan->op[at].layer, last);
        }
        for (uint32_t i = 0; i < ops; i++)
            put_op(&w, &plan->op[at + i]);
        at = next;
    }
    return w.length;
}
