/* What one of several ranks has of a model's matrices: their sizes and formats, without a place in any file. */
#ifndef MIMO_CUDA_SHARD_H
#define MIMO_CUDA_SHARD_H

#include "model/draft.h"

/* The matrices and vectors of mimo_shard_config's `config` in the formats that `whole` has them in: rows of qkv, gate,
 * up, embedding and head are divided, columns of out, down and a drafter's fc. MIMO_ERR_UNSUPPORTED if blocks of MXFP4
 * do not divide. On failure *out needs no release. */
MIMO_MUST_CHECK mimo_status mimo_shard_weights(mimo_weights *out, const mimo_config *config, const mimo_weights *whole,
                                               uint32_t world, mimo_error *err);

/* A drafter's share; its head is `target`'s, which is the share of the target's. It must draft all ids. On failure *out
 * needs no release. */
MIMO_MUST_CHECK mimo_status mimo_shard_draft(mimo_draft *out, const mimo_draft *whole, const mimo_weights *target,
                                             uint32_t world, mimo_error *err);

#endif
