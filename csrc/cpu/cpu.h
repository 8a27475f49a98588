/* The CPU backend's own state, shared by the files of this room. */
#ifndef MIMO_CPU_CPU_H
#define MIMO_CPU_CPU_H

#include "base/pool.h"
#include "cpu/kernels.h"
#include "cpu/kv.h"
#include "cpu/panel.h"
#include "plan/backend.h"
#include "plan/plan.h"

/* Steps of at most this many rows norm their rows on every worker, which costs less than a barrier. */
enum { MIMO_LOCAL_ROWS = 4 };
/* Most octets of a unit of matrix rows: its results for a whole prefill tile stay in the second-level cache. */
enum { MIMO_UNIT_OCTETS = 16 };
/* Attention shares the chunks of a long context out when a step has fewer queries (a row's heads of one key/value head)
 * than so many a worker, and computes at most so many chunks of queries a worker before it merges them. */
enum { MIMO_SPLIT_QUERIES = 16, MIMO_SPLIT_PARTS = 64 };
/* A tile of attention has at most so many rows, and fewer where there would not be so many tiles a worker. */
enum { MIMO_TILE_ROWS = 8, MIMO_TILES = 4 };

typedef struct mimo_cpu_layer {
    const float *attention_norm, *mlp_norm; /* [H] */
    const float *sinks;                     /* [N] or NULL */
    const float *q_norm, *k_norm;           /* [D] or NULL */
    const float *router_bias;               /* [E] */
    mimo_panel qkv, out, router;
    bool routes_alike;            /* the router is all zeros: it need not be read, and every row has the same experts */
    mimo_panel *gate, *up, *down; /* [mlps] */
} mimo_cpu_layer;

/* Activation rows as a kernel reads them, with room to write. */
typedef struct mimo_rows {
    float *f;  /* [rows, K]; NULL where only the quantised form is read */
    int8_t *q; /* NULL in exact mode */
    float *d;
    int32_t *s;
    size_t K;
} mimo_rows;

/* Routing of a step: for each expert in use, its rows in ascending order. */
typedef struct mimo_routes {
    uint32_t *expert; /* [T, K], ascending in each row */
    float *weight;    /* [T, K] */
    uint32_t *active; /* [E] experts in use, ascending */
    size_t actives;
    uint32_t *first; /* [E + 1] entries of expert active[i] are first[i] .. first[i+1] */
    uint16_t *row;   /* [T * K] row of an entry */
    uint16_t *slot;  /* [T * K] row of U: row * K + k */
    float *share;    /* [T * K] weight of an entry */
} mimo_routes;

typedef struct mimo_scratch { /* one worker's */
    mimo_rows local;          /* [MIMO_LOCAL_ROWS, H] */
    float *gemm;              /* [max_rows, block] results of one unit, twice (gate and up) */
    float *sum;               /* [max_rows, block] */
    float *attention;         /* scores, queries and results of one unit */
} mimo_scratch;

typedef struct mimo_cpu {
    mimo_backend base;
    const mimo_config *config;
    const mimo_weights *weights;
    const mimo_kernels *kernels;
    bool exact;
    size_t threads, max_rows;
    mimo_plan plan;
    mimo_kv_layout kv_layout;
    mimo_pool *pool;

    uint8_t *slab; /* [slab_bytes] all packed weights */
    size_t slab_bytes;
    uint8_t *embed;     /* [V, H] as stored: BF16 or F32 */
    float *vectors;     /* norms, sinks, router biases */
    mimo_panel *panels; /* storage of every layer's gate, up, down */
    const float *norm;  /* [H] */
    mimo_panel head;
    mimo_cpu_layer layer[MIMO_MAX_LAYERS];

    /* Rows of the step */
    float *x;               /* [T, H] */
    size_t angles[2];       /* R/2 of each attention kind, 0 if no layer is of it */
    float *cos[2], *sin[2]; /* [T, R/2] */
    float *q;               /* [T, N*D] */
    mimo_rows a;            /* [T, N*Dv] */
    mimo_rows m;            /* [T, H] normed input of a matrix */
    mimo_rows u;            /* [T*K, F] or [T, F]; rows a and u are as wide as the layer's */
    float *router_logits;   /* [T, round_up(E, 8)] */
    mimo_routes routes;
    float *frequency[2];   /* [R/2] */
    size_t block;          /* floats of one row of scratch.gemm */
    mimo_scratch *scratch; /* [threads] */
    /* m, l, acc of one query and chunk are split_width floats */
    float *split_total; /* [MIMO_SPLIT_QUERIES * threads] */
    float *split_part;  /* [2, MIMO_SPLIT_PARTS * threads] */
    size_t split_width;
    uint8_t *workspace;

    struct mimo_cpu_draft *draft; /* draft.h; NULL: no drafter. The drafter's own layers are a mimo_cpu inside it. */

    bool profiling;
    mimo_profile *profile; /* [threads] */

    const mimo_step *step;
} mimo_cpu;

/* load.c */
MIMO_MUST_CHECK mimo_status mimo_cpu_plan_weights(mimo_cpu *cpu, mimo_error *err);
/* Of the target or of a drafter. On failure nothing stays loaded. */
MIMO_MUST_CHECK mimo_status mimo_cpu_load(mimo_cpu *cpu, const mimo_file *files, atomic_uint_fast64_t *done,
                                          const atomic_bool *cancel, mimo_error *err);
void mimo_cpu_release_weights(mimo_cpu *cpu);

/* workspace.c */
MIMO_MUST_CHECK mimo_status mimo_cpu_open_workspace(mimo_cpu *cpu, mimo_error *err);

/* run.c */
void mimo_cpu_step(mimo_backend *self, const mimo_step *step);
/* Operations [first, end) of cpu's tape on all workers, for `step`. */
void mimo_cpu_run(mimo_cpu *cpu, const mimo_step *step, uint32_t first, uint32_t end);

/* backend.c */
/* Frees what the fields hold, the pool excepted. */
void mimo_cpu_close_parts(mimo_cpu *cpu);
/* Adds a cache of this layout to the memory of a sequence. */
void mimo_cpu_count_kv(mimo_cpu *cpu, const mimo_kv_layout *layout);

/* What one worker needs to run one operation. */
typedef struct mimo_task {
    mimo_cpu *cpu;
    const mimo_op *op;
    mimo_worker *worker;
    mimo_scratch *scratch;
} mimo_task;

/* ---- units.c: which worker has which octets of a matrix ----
 *
 * On a machine with several memory nodes every matrix has one share of its octets on each, written there by the workers
 * of the node when it is packed, and these begin with it in every step; whoever has nothing left helps the others. */

/* Shares begin at multiples of so many octets, a quantised block of rows. */
enum { MIMO_HOME_OCTETS = 4 };

/* The first octet, of `octets`, of a node's share; of mimo_pool_nodes: `octets`. */
size_t mimo_cpu_home(const mimo_cpu *cpu, size_t octets, size_t node);

/* The work of an operation in units, those of a node side by side. */
typedef struct mimo_units {
    size_t count, nodes;
    size_t first[MIMO_MAX_NODES + 1]; /* unit of a node */
    size_t home[MIMO_MAX_NODES + 1];  /* octet of a node */
    size_t size;                      /* octets of a unit, or fewer at the end of a share */
    size_t matrices;
} mimo_units;

typedef struct mimo_piece {
    size_t matrix, octet, octets;
} mimo_piece;

/* Of `matrices` with `octets` octets each. */
mimo_units mimo_units_share(const mimo_cpu *cpu, size_t octets, size_t size, size_t matrices);
/* Of one panel, the size a multiple of `multiple`. */
mimo_units mimo_units_of(const mimo_cpu *cpu, const mimo_panel *panel, size_t multiple);
/* unit < count. */
mimo_piece mimo_units_at(const mimo_units *units, size_t unit);
/* The worker's first: the one of its number on its node, if there are so many there. */
size_t mimo_units_begin(const mimo_units *units, const mimo_worker *worker);

/* The units that a worker takes, each known one before its turn so that its weights can be asked for: first the one of
 * the worker's number, then the next free ones of its node, then of others. A unit of `count` or more is none. */
typedef struct mimo_claim {
    const mimo_units *units;
    mimo_worker *worker;
    size_t unit, next;
    size_t passed; /* nodes without free units */
} mimo_claim;

/* Every worker, once in a phase. */
mimo_claim mimo_cpu_claim(const mimo_task *task, const mimo_units *units);
void mimo_cpu_claim_next(mimo_claim *claim);

/* ops_*.c: one function an operation. Each takes units until none is left; the barrier after it is run.c's. */
void mimo_cpu_embed(const mimo_task *task);
void mimo_cpu_draft_fuse(const mimo_task *task);
void mimo_cpu_draft_context(const mimo_task *task);
void mimo_cpu_draft_embed(const mimo_task *task);
void mimo_cpu_qkv(const mimo_task *task);
void mimo_cpu_attention(const mimo_task *task);
/* The keys [*lowest, *after) that row t of the step sees. */
void mimo_cpu_keys(const mimo_cpu *cpu, const mimo_attention *a, size_t t, size_t *lowest, size_t *after);
void mimo_cpu_out_proj(const mimo_task *task);
void mimo_cpu_route(const mimo_task *task);
/* The part of route that one worker does when all rows have their router logits: or, in a layer whose routes are alike,
 * before the operation, after which nobody then waits. */
void mimo_cpu_route_end(mimo_cpu *cpu, const mimo_op *op);
/* Finds the layers whose routes are alike; weights are loaded. */
void mimo_cpu_mark_routes(mimo_cpu *cpu);
void mimo_cpu_expert_up(const mimo_task *task);
void mimo_cpu_expert_down(const mimo_task *task);
void mimo_cpu_dense_up(const mimo_task *task);
void mimo_cpu_dense_down(const mimo_task *task);
void mimo_cpu_head(const mimo_task *task);

/* shared by the operations (ops.c) */

/* x [H] = the row of `token` in the embedding table. */
void mimo_cpu_embed_token(const mimo_cpu *cpu, float *x, size_t token);
/* Cosines and sines of row t, at its position. */
void mimo_cpu_angles(const mimo_cpu *cpu, size_t t);
/* Octets [octet, octet + octets) of a panel. */
mimo_ahead mimo_cpu_ahead(const mimo_panel *panel, size_t octet, size_t octets);
mimo_ahead mimo_cpu_ahead_unit(const mimo_panel *panel, const mimo_units *units, size_t unit);
/* What this worker reads first in the operation after the task's. */
mimo_ahead mimo_cpu_ahead_next_op(const mimo_task *task);
mimo_ahead mimo_cpu_ahead_first_qkv(const mimo_task *task, uint32_t layer);

/* The kernel for `panel`, by its packing. */
mimo_gemm *mimo_cpu_gemm(const mimo_cpu *cpu, const mimo_panel *panel);
/* Rows as kernels read them, K wide. */
mimo_act mimo_cpu_act(const mimo_rows *rows, size_t K);
/* Elements [first, first + count) of row `row` of rows K wide have been written to rows->f: quantises them in fast
 * mode, where both are whole blocks. */
void mimo_cpu_quantize(const mimo_cpu *cpu, const mimo_rows *rows, size_t K, size_t row, size_t first, size_t count);
/* Norms x[row[i]] for i < count (row NULL: x[i]) into the worker's own rows if they are few, else together into cpu->m,
 * which takes a barrier. Returns the rows to read: i-th row of the result. */
const mimo_rows *mimo_cpu_norm_rows(const mimo_task *task, const uint16_t *row, size_t count, const float *weight);
/* Octets that a unit of a matrix with `octets` octets takes, a multiple of `multiple`, at most MIMO_UNIT_OCTETS. */
size_t mimo_cpu_unit_octets(const mimo_cpu *cpu, size_t octets, size_t multiple);
/* x[t, 8*octet ...] += values[t * stride ...] for all rows, `octets` octets. layer_ends: the step's taps of this layer
 * are taken too. */
void mimo_cpu_add_residual(const mimo_task *task, const float *values, size_t stride, size_t octet, size_t octets,
                           bool layer_ends);

#endif
