"""A random drafter and answers that it drafts without a mistake: text made by running it.

Each answer is rounds of an anchor and the B - 1 tokens that the drafter, wired as its checkpoint says, drafts from the residual
streams of a (tiny, random) target. So its acceptance is B in that wiring, and falls with any switch that changes drafts: a
switch that did nothing would leave it at B, and the tests fail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mimo_ultraspeed as mu
from mimo_ultraspeed.evaluate.drafter import NumpyDrafter, Shape, Wiring
from mimo_ultraspeed.evaluate.dump import Answer, Dump
from mimo_ultraspeed.safetensors_write import ShardWriter, bf16_from_f32, f32_from_bf16
from mimo_ultraspeed.weights import Weights

BLOCK, WINDOW, HEADS, KV, DIM, LAYERS, WIDTH, EPS = 8, 20, 4, 2, 32, 2, 64, 1e-6
SHAPE = Shape(LAYERS, HEADS, KV, DIM, DIM, BLOCK, EPS, (True,) * LAYERS)


def wiring(taps: tuple[int, ...]) -> Wiring:
    """What the checkpoint says."""
    return Wiring(taps, rope_theta=10_000.0, rotary_dim=DIM // 2, value_scale=0.612, sinks=True, window=WINDOW)


def config(hidden: int, layers: int, vocab: int, taps: tuple[int, ...]) -> dict[str, Any]:
    """config.json in the published spelling."""
    return {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": DIM, "v_head_dim": DIM,
        "partial_rotary_factor": 0.5, "block_size": BLOCK, "num_target_layers": layers, "vocab_size": vocab, "rope_theta": 10000,
        "sliding_window": WINDOW, "rms_norm_eps": EPS, "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
        "dflash_config": {
            "target_layer_ids": list(taps), "mask_token_id": 7, "block_size": BLOCK, "use_swa": True, "swa_window_size": WINDOW,
            "attention_value_scale": 0.612, "attention_sink_bias": True,
        },
    }  # fmt: skip


def weights(hidden: int, taps: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights, as BF16 can hold them; sharp attention, so that what it sees matters."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> NDArray[np.float32]:
        return f32_from_bf16(bf16_from_f32((mean + std * draw.standard_normal(shape)).astype(np.float32)))

    def matrix(rows: int, cols: int, gain: float = 1.0) -> NDArray[np.float32]:
        return normal(rows, cols, std=gain / np.sqrt(cols))

    found = {
        "fc.weight": matrix(hidden, taps * hidden),
        "hidden_norm.weight": normal(hidden, mean=1, std=0.1),
        "norm.weight": normal(hidden, mean=1, std=0.1),
        "mask_embedding": normal(hidden),
    }
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        found |= {
            f"{prefix}{name}.weight": normal(hidden, mean=1, std=0.1) for name in ("input_layernorm", "post_attention_layernorm")
        }
        found |= {f"{prefix}self_attn.{name}_norm.weight": normal(DIM, mean=1.6, std=0.1) for name in "qk"}
        found[f"{prefix}self_attn.attention_sink_bias"] = normal(HEADS, mean=2)
        found[f"{prefix}self_attn.q_proj.weight"] = matrix(HEADS * DIM, hidden)
        found |= {f"{prefix}self_attn.{name}_proj.weight": matrix(KV * DIM, hidden, 2.0) for name in "kv"}
        found[f"{prefix}self_attn.o_proj.weight"] = matrix(hidden, HEADS * DIM, 2.0)
        found |= {f"{prefix}mlp.{name}_proj.weight": matrix(WIDTH, hidden) for name in ("gate", "up")}
        found[f"{prefix}mlp.down_proj.weight"] = matrix(hidden, WIDTH)
    return found


def write(folder: Path, tensors: dict[str, NDArray[np.float32]], settings: dict[str, Any]) -> Path:
    """The drafter as a `dflash/` folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    with ShardWriter(folder) as writer:
        for name, values in tensors.items():
            writer.reserve(name, "BF16", values.shape)
        for name, values in tensors.items():
            writer.write(name, bf16_from_f32(values))
    return folder


class Constructed:
    """Target, drafter, answers."""

    def __init__(self, model: mu.Model, folder: Path, *, answers: int = 3, rounds: int = 8) -> None:
        config_ = model.config
        last = config_.num_hidden_layers - 1
        self.model, self.taps = model, (0, last // 2, last)
        own = weights(config_.hidden_size, len(self.taps))
        target = Weights(model.checkpoint.tensors, model.checkpoint.files)
        self.embedding = target["embed_tokens.weight"]
        head = self.embedding if config_.tie_word_embeddings else target["lm_head.weight"]
        self.folder = write(folder, own, config(config_.hidden_size, last + 1, config_.vocab_size, self.taps))
        self.wiring = wiring(self.taps)
        self.drafter = NumpyDrafter(own, SHAPE, head=head, mask=own["mask_embedding"], mask_row=self.embedding[7])
        self.layers = tuple(range(last + 1))
        self.dump = Dump(self.layers, tuple(self.answer(number, rounds) for number in range(answers)))

    def answer(self, number: int, rounds: int) -> Answer:
        draw = np.random.default_rng(100 + number)
        ids = [int(token) for token in draw.integers(0, 512, 30 + number)]
        start = len(ids)
        for _ in range(rounds):
            ids.append(int(draw.integers(0, 512)))
            ids += self.drafts(np.array(ids))
        ids.append(1)
        return Answer(np.array(ids), start, self.model.hidden_states(ids, self.layers))

    def drafts(self, ids: NDArray[np.int64]) -> list[int]:
        """Of the checkpoint's wiring, with the last of `ids` as the anchor."""
        streams = Answer(ids, 0, self.model.hidden_states(ids, self.layers))
        embedded = self.embedding[ids]
        context = self.drafter.context(Dump(self.layers, (streams,)).taps(streams, self.taps))
        anchor = np.array([len(ids) - 1])
        return [int(token) for token in self.drafter.draft(self.wiring, context, anchor, embedded[anchor], ids[anchor])[0]]
