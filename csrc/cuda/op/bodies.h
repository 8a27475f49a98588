/* Every operation of plan/ops.def as functions over a team: the list of them.
 *
 * A tile is computed by one team, for all rows of the step unless it names one. Tiles of one operation may be computed
 * in any order and by any number of teams, cut anywhere: the bits of a row do not depend on it, nor on the width of the
 * step. What must have been done before is said by the slots of ops.def, and below where an operation has two parts.
 * `layer` is a number; s is a mimo_cuda_state.
 *
 *   mimo_cuda_prepare(team, s, code)  once by each team before its first tile of an operation in a step: what the
 *                                   operation's norm divides by, kept in the team's scratch until the next prepare
 *
 *   EMBED          mimo_cuda_embed(team, s, t)                              row t of x, its angles
 *   QKV            mimo_cuda_qkv(team, s, layer, head, first, count)        heads: queries, then keys, then values;
 *                                   steps [first, first + count) of mimo_cuda_head_steps(...) of that head
 *   ATTENTION      mimo_cuda_attend(team, s, layer, t, g)                   heads of key/value head g, all keys; or
 *                  mimo_cuda_attend_chunk(team, s, layer, t, g, i)          the i-th chunk of its keys, all i, then
 *                  mimo_cuda_attend_merge(team, s, layer, t, g)
 *   OUT_PROJ       mimo_cuda_out_proj(team, s, layer, first, count)         columns of x
 *   ROUTE          mimo_cuda_route_norm(team, s, layer, first, count)       columns of m
 *                  mimo_cuda_route(team, s, layer, first, count)            router logits of experts; after all of them
 *                  mimo_cuda_route_choose(team, s, layer)                   the router's choice
 *   EXPERT_UP      mimo_cuda_expert_up(team, s, layer, i, first, count)     columns of u, of expert moe.expert[i]
 *   EXPERT_DOWN    mimo_cuda_expert_down(team, s, layer, first, count)      columns of x
 *   DENSE_UP       mimo_cuda_dense_up(team, s, layer, first, count)         columns of u
 *   DENSE_DOWN     mimo_cuda_dense_down(team, s, layer, first, count)       columns of x
 *   HEAD           mimo_cuda_head(team, s, first, count)                    columns of logits
 *   DRAFT_FUSE     mimo_cuda_draft_fuse(team, s, first, count)              columns of x; with first 0 all angles too
 *   DRAFT_CONTEXT  mimo_cuda_draft_context(team, s, layer, head, first, count)   as QKV, heads: keys, then values
 *   DRAFT_EMBED    mimo_cuda_draft_embed(team, s, t)                        row t of x, its angles
 */
#ifndef MIMO_CUDA_OP_BODIES_H
#define MIMO_CUDA_OP_BODIES_H

#include "cuda/op/attention.h"
#include "cuda/op/dense.h"
#include "cuda/op/draft.h"
#include "cuda/op/experts.h"
#include "cuda/op/norm.h"
#include "cuda/op/qkv.h"
#include "cuda/op/route.h"

#endif
