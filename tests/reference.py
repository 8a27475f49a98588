"""The oracle: a MiMo-V2 checkpoint read and run by plain numpy, slow and obvious, sharing no code with the package.

reference_tensors dequantises every weight to float32 under logical names (split q, k, v). reference_forward is the equations
of the model over a whole sequence at once: no cache, no blocks; sums in float64, so that its own rounding does not count.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "BF16": "<u2", "F8_E4M3": "u1", "U8": "u1", "I64": "<i8"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def e4m3_values() -> np.ndarray:
    """[256] float32: the value of every E4M3 code."""
    values = np.empty(256, np.float32)
    for code in range(256):
        sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
        size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        values[code] = np.nan if code & 127 == 127 else (-size if sign else size)
    return values


def stored_tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """name -> (dtype, elements as stored) of every shard in the folder."""
    stored: dict[str, tuple[str, np.ndarray]] = {}
    for shard in sorted(path.glob("*.safetensors")):
        raw = shard.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                elements = np.frombuffer(raw[start + begin : start + end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
                stored[name] = (entry["dtype"], elements)
    return stored


def fp8_rows(codes: np.ndarray, scales: np.ndarray, scale_row_of: list[int]) -> np.ndarray:
    """codes [R, C], scales [S, ceil(C/128)] -> float32 [R, C]; row r uses scale row scale_row_of[r]."""
    columns = np.arange(codes.shape[1]) // 128
    return e4m3_values()[codes] * scales[np.array(scale_row_of)][:, columns]


def restarting(parts: int, rows: int) -> list[int]:
    """The scale row of every row, in a matrix of `parts` parts of `rows` rows, each with a grid of its own."""
    tiles = (rows + 127) // 128
    return [part * tiles + row // 128 for part in range(parts) for row in range(rows)]


def mxfp4_rows(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes [R, C/2] (low nibble first), scales [R, C/32] E8M0 -> float32 [R, C]."""
    rows, half = codes.shape
    elements = np.empty((rows, 2 * half), np.float32)
    elements[:, 0::2] = E2M1[codes & 15]
    elements[:, 1::2] = E2M1[codes >> 4]
    return elements * np.repeat(np.ldexp(np.float32(1), scales.astype(np.int32) - 127), 32, axis=1)


def attention_of(config: dict, layer: int) -> dict:
    """The attention dimensions of one layer of a config.json in the published spelling."""
    sliding = config["hybrid_layer_pattern"][layer] == 1
    prefix = "swa_" if sliding else ""
    return {
        "heads": config[f"{prefix}num_attention_heads"],
        "kv_heads": config[f"{prefix}num_key_value_heads"],
        "head_dim": config[f"{prefix}head_dim"],
        "v_head_dim": config[f"{prefix}v_head_dim"],
        "rope_theta": config[f"{prefix}rope_theta"],
        "rotary_dim": int(config[f"{prefix}head_dim"] * config["partial_rotary_factor"]),
        "window": config["sliding_window"] if sliding else None,
        "sliding": sliding,
    }


def read_config(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())


def reference_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """name -> float32 array, fully dequantised; a fused qkv_proj becomes logical q_proj, k_proj, v_proj. Small models only."""
    path = Path(path)
    config = read_config(path)
    stored = stored_tensors(path)
    index = path / "model.safetensors.index.json"
    metadata = json.loads(index.read_text())["metadata"] if index.exists() else {}
    tensors: dict[str, np.ndarray] = {}
    for name, (dtype, elements) in stored.items():
        if name.endswith(("weight_scale", "weight_scale_inv")):
            continue
        if dtype == "F32":
            value = elements.astype(np.float32)
        elif dtype == "BF16":
            value = (elements.astype(np.uint32) << 16).view(np.float32)
        elif dtype == "U8":
            value = mxfp4_rows(elements, stored[name + "_scale"][1])
        else:
            scales = stored[name + "_scale_inv"][1]
            value = fp8_rows(elements, scales, scale_rows(config, metadata, name, elements.shape[0], scales.shape[0]))
        if name.endswith("qkv_proj.weight"):
            tensors |= split_qkv(config, metadata, name, value)
        else:
            tensors[name] = value
    return tensors


def layer_of(name: str) -> int | None:
    """The decoder layer of a tensor; None for tensors of other parts (which repeat the numbers)."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def chunk_count(config: dict, metadata: dict) -> int:
    if "tp_size" in metadata:
        return metadata["tp_size"]
    has_full = 0 in config["hybrid_layer_pattern"]
    return config["num_key_value_heads" if has_full else "swa_num_key_value_heads"]


def scale_rows(config: dict, metadata: dict, name: str, rows: int, grid_rows: int) -> list[int]:
    layer = layer_of(name)
    if name.endswith("qkv_proj.weight"):
        chunks = chunk_count(config, metadata)
        return restarting(chunks, rows // chunks)
    if name.endswith("k_proj.weight") and layer is not None:
        a = attention_of(config, layer)
        per_head = a["kv_heads"] * ((a["head_dim"] + 127) // 128)
        if grid_rows == per_head != (rows + 127) // 128:
            return restarting(a["kv_heads"], a["head_dim"])
    return restarting(1, rows)


def split_qkv(config: dict, metadata: dict, name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Chunk after chunk [Q|K|V] -> all of Q, all of K, all of V."""
    layer = layer_of(name)
    a = attention_of(config, config["hybrid_layer_pattern"].index(1) if layer is None else layer)
    chunks = chunk_count(config, metadata)
    q = a["heads"] // chunks * a["head_dim"]
    k = a["kv_heads"] // chunks * a["head_dim"]
    pieces = [np.split(chunk, [q, q + k]) for chunk in np.split(value, chunks)]
    return {name.replace("qkv_proj", f"{which}_proj"): np.concatenate([p[i] for p in pieces]) for i, which in enumerate("qkv")}


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def rope(x: np.ndarray, theta: float, dims: int) -> np.ndarray:
    """x [heads, T, D]: pairs (j, j + dims/2) of the first `dims` dims turn by position * theta^(-2j/dims)."""
    half = dims // 2
    angle = np.arange(x.shape[1])[:, None] * theta ** (-2.0 * np.arange(half) / dims)
    first, second, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    turned = [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    return np.concatenate([*turned, rest], -1)


def attention(x: np.ndarray, w: dict[str, np.ndarray], prefix: str, a: dict, value_scale: float) -> np.ndarray:
    """x [T, H] (normed) -> [T, H]."""
    rows = len(x)

    def heads(which: str, count: int) -> np.ndarray:
        return (x @ w[f"{prefix}{which}_proj.weight"].T).reshape(rows, count, -1).transpose(1, 0, 2)

    q = rope(heads("q", a["heads"]), a["rope_theta"], a["rotary_dim"])
    k = rope(heads("k", a["kv_heads"]), a["rope_theta"], a["rotary_dim"])
    v = heads("v", a["kv_heads"]) * value_scale
    sinks = w.get(f"{prefix}attention_sink_bias")
    distance = np.arange(rows)[:, None] - np.arange(rows)[None, :]
    visible = distance >= 0 if a["window"] is None else (distance >= 0) & (distance < a["window"])
    outputs = []
    for head in range(a["heads"]):
        kv = head // (a["heads"] // a["kv_heads"])
        scores = np.where(visible, q[head] @ k[kv].T / np.sqrt(a["head_dim"]), -np.inf)
        highest = scores.max(-1, keepdims=True)
        if sinks is not None:
            highest = np.maximum(highest, sinks[head])
        p = np.exp(scores - highest)
        total = p.sum(-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[head] - highest)
        outputs.append(p / total @ v[kv])
    return np.concatenate(outputs, -1) @ w[f"{prefix}o_proj.weight"].T


def mlp(x: np.ndarray, w: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    gate, up, down = (w[f"{prefix}{which}_proj.weight"] for which in ("gate", "up", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def mixture(x: np.ndarray, w: dict[str, np.ndarray], prefix: str, config: dict) -> np.ndarray:
    """Sigmoid scores; the bias takes part in the choice alone; lower expert number first on equal scores."""
    scores = 1 / (1 + np.exp(-(x @ w[f"{prefix}gate.weight"].T)))
    chosen = np.argsort(-(scores + w[f"{prefix}gate.e_score_correction_bias"]), axis=-1, kind="stable")
    y = np.zeros_like(x)
    for row, experts in enumerate(chosen[:, : config["num_experts_per_tok"]]):
        weights = scores[row, experts]
        if config["norm_topk_prob"]:
            weights = weights / (weights.sum() + 1e-20)
        weights = weights * (config["routed_scaling_factor"] or 1.0)
        for expert, weight in zip(experts, weights, strict=True):
            y[row] += weight * mlp(x[row], w, f"{prefix}experts.{expert}.")
    return y


def reference_forward(w: dict[str, np.ndarray], config: dict, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """logits [T, V] and the residual stream after every layer [L, T, H], both float32."""
    x = w["model.embed_tokens.weight"][tokens].astype(np.float64)
    eps = config["layernorm_epsilon"]
    hidden = []
    for layer, sparse in enumerate(config["moe_layer_freq"]):
        prefix = f"model.layers.{layer}."
        normed = rms_norm(x, w[f"{prefix}input_layernorm.weight"], eps)
        a = attention_of(config, layer)
        x = x + attention(normed, w, f"{prefix}self_attn.", a, config["attention_value_scale"])
        normed = rms_norm(x, w[f"{prefix}post_attention_layernorm.weight"], eps)
        x = x + (mixture(normed, w, f"{prefix}mlp.", config) if sparse else mlp(normed, w, f"{prefix}mlp."))
        hidden.append(x)
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    logits = rms_norm(x, w["model.norm.weight"], eps) @ head.T
    return logits.astype(np.float32), np.array(hidden, np.float32)


def reference_logits(path: str | Path, tokens: list[int]) -> np.ndarray:
    """[T, V] float32."""
    return reference_forward(reference_tensors(path), read_config(Path(path)), tokens)[0]


def reference_hidden_states(path: str | Path, tokens: list[int]) -> np.ndarray:
    """[L, T, H] float32: the residual stream after every layer."""
    return reference_forward(reference_tensors(path), read_config(Path(path)), tokens)[1]
