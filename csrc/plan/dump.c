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

static bool alike(const mimo_plan *plan, uint32_t a, uint32_t b)
{
    const uint32_t ops = layer_ops(plan, a);
    if (layer_ops(plan, b) != ops)
        return false;
    for (uint32_t i = 0; i < ops; i++)
        if (plan->op[a + i].code != plan->op[b + i].code ||
            memcmp(plan->op[a + i].dim, plan->op[b + i].dim, sizeof plan->op[a].dim) != 0)
            return false;
    return true;
}

static bool is_layer(const mimo_plan *plan, uint32_t at)
{
    return at < plan->count && plan->op[at].layer != MIMO_NO_LAYER;
}

static bool seen_before(const mimo_plan *plan, uint32_t at)
{
    for (uint32_t b = 0; b < at; b += layer_ops(plan, b))
        if (is_layer(plan, b) && alike(plan, b, at))
            return true;
    return false;
}

/* "layers 0, 7, 15-16: " and so on: all layers like the one that starts at op `at`. */
static void put_layers(writer *w, const mimo_plan *plan, uint32_t at)
{
    uint32_t count = 0;
    put(w, "layers");
    for (uint32_t b = at; is_layer(plan, b);) {
        const uint32_t first = plan->op[b].layer;
        uint32_t next = b;
        while (is_layer(plan, next) && alike(plan, at, next))
            next += layer_ops(plan, next);
        if (next == b) {
            b += layer_ops(plan, b);
            continue;
        }
        const uint32_t last = plan->op[next - 1].layer;
        put(w, "%s %u", count > 0 ? "," : "", first);
        if (last != first)
            put(w, "-%u", last);
        count += last - first + 1;
        b = next;
    }
    put(w, " (%u)\n", count);
}

static void put_slots(writer *w, uint32_t slots)
{
    static const char *const names[MIMO_SLOTS] = {"tokens", "angles", "x", "q",      "kv",     "a",
                                                  "m",      "routes", "u", "logits", "context"};
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
    for (uint32_t at = 0; at < plan->count; at += layer_ops(plan, at)) {
        if (is_layer(plan, at) && seen_before(plan, at))
            continue;
        if (is_layer(plan, at))
            put_layers(&w, plan, at);
        for (uint32_t i = 0; i < layer_ops(plan, at); i++)
            put_op(&w, &plan->op[at + i]);
    }
    return w.length;
}
