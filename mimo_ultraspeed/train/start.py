"""What a drafter starts from: the target's last layers, its last tap, its frequent tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ModelConfig
from .drafter import DrafterConfig, Parameters
from .target import TargetWeights

__all__ = ["default_config", "default_taps", "frequent_tokens", "starting_parameters", "tap_rms"]

_NORM_OF_QUERIES = 1.5
_FINAL_GAIN = 0.3
"""Of the target's final norm: with all of it, the first guesses are far too sure of themselves."""
_SKIPPED_POSITIONS = 4
"""The first positions of a sequence carry activations of a size of their own, which would set every scale."""


def default_taps(layers: int, count: int = 5) -> tuple[int, ...]:
    """Layers evenly spread from a shallow one to the last."""
    first = min(2, layers - 1)
    return tuple(dict.fromkeys(round(first + at * (layers - 1 - first) / max(count - 1, 1)) for at in range(count)))


def default_config(target: ModelConfig, *, taps: Sequence[int] | None = None, layers: int = 3, **changes: object) -> DrafterConfig:
    """A drafter with the dimensions of the target's full-attention layers. changes: fields of DrafterConfig."""
    attention = target.full
    settings: dict[str, object] = {
        "hidden_size": target.hidden_size,
        "intermediate_size": target.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "v_head_dim": attention.v_head_dim,
        "rotary_dim": int(attention.head_dim * attention.partial_rotary_factor) // 2 * 2,
        "rope_theta": attention.rope_theta,
        "rms_norm_eps": target.layernorm_epsilon,
        "vocab_size": target.vocab_size,
        "num_target_layers": target.num_hidden_layers,
        "max_position_embeddings": target.max_position_embeddings,
        "taps": tuple(taps) if taps is not None else default_taps(target.num_hidden_layers),
        "value_scale": target.attention_value_scale,
        "head_size": min(4096, target.vocab_size),
    }
    return DrafterConfig(**(settings | changes))  # type: ignore[arg-type]


def frequent_tokens(sequences: Iterable[tuple[Sequence[int], Sequence[int]]], count: int, vocab: int) -> NDArray[np.int64]:
    """The `count` token ids most frequent in (prompt, answer) pairs, ascending; answers count five times."""
    seen: Counter[int] = Counter()
    for prompt, answer in sequences:
        seen.update(prompt)
        for _ in range(5):
            seen.update(answer)
    ranked = [token for token, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))][:count]
    chosen = set(ranked)
    rest = (token for token in range(vocab) if token not in chosen)
    ranked += [next(rest) for _ in range(count - len(ranked))]
    return np.array(sorted(ranked), np.int64)


def tap_rms(features: Iterable[NDArray[np.float16]]) -> NDArray[np.float32]:
    """[m * H]: the size of each tap channel over sequences [T, m * H]."""
    total, rows = np.zeros(0), 0
    for one in features:
        kept = np.asarray(one[_SKIPPED_POSITIONS:], np.float64)
        total = (kept**2).sum(0) + (total if total.size else 0)
        rows += len(kept)
    if rows == 0:
        raise ValueError(f"features: expected sequences of more than {_SKIPPED_POSITIONS} positions, found none")
    return np.sqrt(total / rows + 1e-12).astype(np.float32)


def starting_parameters(config: DrafterConfig, target: TargetWeights, rms: NDArray[np.float32], seed: int) -> Parameters:
    """Copies of the target's last layers where shapes agree, random matrices elsewhere; the context starts as the last tap.

    rms: [m * H] as from `tap_rms`; the taps that `fc.weight` sees are divided by it.
    """
    draw = torch.Generator().manual_seed(seed)
    made: Parameters = {}
    for name, shape in config.matrices().items():
        made[name] = torch.randn(shape, generator=draw) * (0.5 / shape[1] ** 0.5)
    for name, (size,) in config.vectors().items():
        is_bias = name.endswith("sink_bias")
        made[name] = (
            torch.zeros(size) if is_bias else torch.full((size,), _NORM_OF_QUERIES if "_norm.weight" in name[-13:] else 1.0)
        )
    for name, table in config.tables().items():
        made[name] = torch.randn(table, generator=draw) * 0.1 if "w1" in name else torch.zeros(table)
    first = config.num_target_layers - config.num_hidden_layers
    input_norms = []
    for layer in range(config.num_hidden_layers):
        source = target.layer(first + layer) if first + layer >= 0 else {}
        for name, values in source.items():
            full = f"layers.{layer}.{name}"
            if full in made and made[full].shape == values.shape:
                made[full] = torch.from_numpy(values.copy())
        input_norms.append(made[f"layers.{layer}.input_layernorm.weight"])
    _start_context(made, config, torch.stack(input_norms).mean(0), rms, draw)
    made["norm.weight"] = _FINAL_GAIN * torch.from_numpy(target.final_norm())
    embedding = torch.from_numpy(target.embedding())
    noise = torch.randn(config.hidden_size, generator=draw) * embedding.std()
    made["mask_embedding"] = embedding.mean(0) + 0.1 * noise
    return made


def _start_context(
    made: Parameters, config: DrafterConfig, input_norm: Tensor, rms: NDArray[np.float32], draw: torch.Generator
) -> None:
    """fc picks the last tap; hidden_norm undoes the taps' scaling and does what the layers' input norms did."""
    size = config.hidden_size
    fc = torch.randn(made["fc.weight"].shape, generator=draw) * 0.01
    fc[:, -size:] += torch.eye(size)
    last = torch.from_numpy(rms[-size:])
    made["fc.weight"] = fc
    made["hidden_norm.weight"] = input_norm * last / last.square().mean().sqrt()
