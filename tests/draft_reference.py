"""The oracle of the drafter: the equations of one block over its whole context at once, by plain numpy in float64.

No ring, no batches, nothing of the package: tensors and settings come from the files of a drafter's folder.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
from reference import fp8_rows, mlp, mxfp4_rows, restarting, rms_norm, stored_tensors


def draft_tensors(folder: Path) -> dict[str, np.ndarray]:
    """name without `model.` -> float32 (d2t: int64), fully dequantised; the mask embedding from its file if there is one."""
    tensors: dict[str, np.ndarray] = {}
    stored = stored_tensors(folder)
    for name, (dtype, elements) in stored.items():
        if name.endswith(("weight_scale", "weight_scale_inv")):
            continue
        if dtype == "BF16":
            value = (elements.astype(np.uint32) << 16).view(np.float32)
        elif dtype == "U8":
            value = mxfp4_rows(elements, stored[name + "_scale"][1])
        elif dtype == "F8_E4M3":
            value = fp8_rows(elements, stored[name + "_scale_inv"][1], restarting(1, len(elements)))
        else:
            value = elements
        tensors[name.removeprefix("model.")] = value
    sidecar = folder / "mask_embedding.pt"
    if sidecar.exists():
        raw = zipfile.ZipFile(sidecar).read("mask_embedding/data/0")
        tensors["mask_embedding"] = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return tensors


def draft_settings(folder: Path) -> dict:
    """What the equations need of a made config.json."""
    raw = json.loads((folder / "config.json").read_text())
    nested = raw["dflash_config"]
    both = raw | nested
    sliding = both["use_swa"] if "use_swa" in both else both["use_sliding_window"]
    return {
        "layers": raw["num_hidden_layers"],
        "heads": raw["num_attention_heads"],
        "kv_heads": raw["num_key_value_heads"],
        "eps": raw["rms_norm_eps"],
        "theta": raw["rope_theta"],
        "rotary": int(raw["head_dim"] * raw["partial_rotary_factor"]),
        "value_scale": both["attention_value_scale"],
        "window": both["sliding_window"] if sliding else None,
        "causal": bool(both.get("causal", both.get("is_causal", False))),
        "rule": "query",
        "taps": both["target_layer_ids"],
        "block": both["block_size"],
    }


def turn(x: np.ndarray, positions: np.ndarray, theta: float, dims: int) -> np.ndarray:
    """x [T, heads, D]: pairs (j, j + dims/2) of the first `dims` dims."""
    half = dims // 2
    angle = positions[:, None, None] * theta ** (-2.0 * np.arange(half) / max(dims, 1))
    first, second, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle), rest], -1
    )


def visible(s: dict, anchor: int, context: np.ndarray, block: np.ndarray) -> np.ndarray:
    """[block rows, context and block rows]"""
    window = s["window"]
    seen = np.ones((len(block), len(context)), bool)
    if window is not None and s["rule"] == "anchor":
        seen = np.broadcast_to(context >= anchor - window, seen.shape)
    elif window is not None:
        seen = block[:, None] - context[None, :] < window
    inside = block[:, None] >= block[None, :] if s["causal"] else np.ones((len(block), len(block)), bool)
    return np.concatenate([seen, inside], 1)


def heads_of(x: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    return (x @ weight.T).reshape(len(x), count, -1)


def draft_hidden(
    w: dict[str, np.ndarray], s: dict, hidden: np.ndarray, embedding: np.ndarray, anchor: int, *, width: int, begin: int = 0
) -> np.ndarray:
    """[width, H]: what the head of each row of a block reads.

    hidden [L, T, H]: the target's residual streams; embedding [H]: of the anchor, which stands at position `anchor`; the context is
    what comes before it from position `begin` on.
    """
    context, block = np.arange(begin, anchor), np.arange(anchor, anchor + width)
    taps = np.concatenate([hidden[layer, begin:anchor] for layer in s["taps"]], -1).astype(np.float64)
    c = rms_norm(taps @ w["fc.weight"].T, w["hidden_norm.weight"], s["eps"]) if len(context) else np.zeros((0, len(embedding)))
    x = np.array([embedding] + [w["mask_embedding"]] * (width - 1), np.float64)
    seen = visible(s, anchor, context, block)
    positions = np.concatenate([context, block])
    for layer in range(s["layers"]):
        p = f"layers.{layer}."
        u = rms_norm(x, w[f"{p}input_layernorm.weight"], s["eps"])
        both = np.concatenate([c, u])
        q = heads_of(u, w[f"{p}self_attn.q_proj.weight"], s["heads"])
        k = heads_of(both, w[f"{p}self_attn.k_proj.weight"], s["kv_heads"])
        v = heads_of(both, w[f"{p}self_attn.v_proj.weight"], s["kv_heads"]) * s["value_scale"]
        if f"{p}self_attn.q_norm.weight" in w:
            q = rms_norm(q, w[f"{p}self_attn.q_norm.weight"], s["eps"])
            k = rms_norm(k, w[f"{p}self_attn.k_norm.weight"], s["eps"])
        q, k = turn(q, block, s["theta"], s["rotary"]), turn(k, positions, s["theta"], s["rotary"])
        k, v = (np.repeat(part, s["heads"] // s["kv_heads"], axis=1) for part in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(np.where(seen, scores, -np.inf))
        total = weights.sum(-1, keepdims=True)
        if f"{p}self_attn.attention_sink_bias" in w:
            total = total + np.exp(w[f"{p}self_attn.attention_sink_bias"].astype(np.float64))[:, None, None]
        out = np.einsum("hts,shd->thd", weights / total, v).reshape(width, -1)
        x = x + out @ w[f"{p}self_attn.o_proj.weight"].T
        x = x + mlp(rms_norm(x, w[f"{p}post_attention_layernorm.weight"], s["eps"]), w, f"{p}mlp.")
    return rms_norm(x, w["norm.weight"], s["eps"])


def draft_reference(
    w: dict[str, np.ndarray],
    s: dict,
    target: dict[str, np.ndarray],
    hidden: np.ndarray,
    tokens: list[int],
    anchor: int,
    *,
    width: int | None = None,
    begin: int = 0,
) -> np.ndarray:
    """[width - 1, V'] float32: logits of the slots of a block whose anchor is tokens[anchor], without a Markov head's bias."""
    embed = target["model.embed_tokens.weight"]
    rows = draft_hidden(w, s, hidden, embed[tokens[anchor]], anchor, width=width or s["block"], begin=begin)
    head = target.get("lm_head.weight", embed)
    if "d2t" in w:
        head = head[w["d2t"] + np.arange(len(w["d2t"]))]
    return (rows[1:] @ head.T).astype(np.float32)
