"""The oracle operation by operation: what each of a step's tape writes, by the equations of reference.py, for a whole sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import attention_of, mixture, mlp, rms_norm, rope, silu

Array = NDArray[Any]


def layer_slots(w: dict[str, Array], config: dict[str, Any], layer: int, x: Array) -> dict[str, Array]:
    """x [T, H] before a layer -> what each of its operations up to the experts writes; kv [T, G*(D+Dv)]: keys, then values."""
    a, p, T = attention_of(config, layer), f"model.layers.{layer}.", len(x)
    normed = rms_norm(x, w[f"{p}input_layernorm.weight"], config["layernorm_epsilon"])

    def heads(which: str, count: int) -> Array:
        return np.asarray((normed @ w[f"{p}self_attn.{which}_proj.weight"].T).reshape(T, count, -1).transpose(1, 0, 2))

    def rows(of: Array) -> Array:
        return of.transpose(1, 0, 2).reshape(T, -1)

    q = rope(heads("q", a["heads"]), a["rope_theta"], a["rotary_dim"])
    k = rope(heads("k", a["kv_heads"]), a["rope_theta"], a["rotary_dim"])
    v = heads("v", a["kv_heads"]) * config["attention_value_scale"]
    sinks, distance = w.get(f"{p}self_attn.attention_sink_bias"), np.arange(T)[:, None] - np.arange(T)[None, :]
    seen = (distance >= 0) & (distance < (a["window"] or T))
    out = []
    for head in range(a["heads"]):
        g = head // (a["heads"] // a["kv_heads"])
        e = np.exp(np.where(seen, q[head] @ k[g].T / np.sqrt(a["head_dim"]), -np.inf))
        out.append(e / (e.sum(-1, keepdims=True) + (np.exp(sinks[head]) if sinks is not None else 0.0)) @ v[g])
    attended = np.concatenate(out, -1)
    x = x + attended @ w[f"{p}self_attn.o_proj.weight"].T
    m = rms_norm(x, w[f"{p}post_attention_layernorm.weight"], config["layernorm_epsilon"])
    return {"q": rows(q), "kv": np.concatenate([rows(k), rows(v)], -1), "a": attended, "x": x, "m": m}


def expert_weights(w: dict[str, Array], config: dict[str, Any], layer: int, m: Array) -> tuple[Array, Array]:
    """experts [T, K] ascending and their weights."""
    p = f"model.layers.{layer}.mlp."
    scores = 1 / (1 + np.exp(-(m @ w[f"{p}gate.weight"].T)))
    order = np.argsort(-(scores + w[f"{p}gate.e_score_correction_bias"]), axis=-1, kind="stable")
    chosen = np.sort(order[:, : config["num_experts_per_tok"]], axis=-1)
    weight = np.take_along_axis(scores, chosen, -1)
    if config["norm_topk_prob"]:
        weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
    return chosen, weight * (config["routed_scaling_factor"] or 1.0)


def expert_rows(w: dict[str, Array], layer: int, m: Array, chosen: Array) -> Array:
    """SwiGLU [T*K, F] of every row's experts, by expert, then row."""
    rows = []
    for at in np.argsort(chosen.reshape(-1), kind="stable"):
        e, x = f"model.layers.{layer}.mlp.experts.{chosen.reshape(-1)[at]}.", m[at // chosen.shape[1]]
        rows.append(silu(x @ w[f"{e}gate_proj.weight"].T) * (x @ w[f"{e}up_proj.weight"].T))
    return np.array(rows)


def angle_rows(config: dict[str, Any], positions: int) -> Array:
    """[T, *] cosines, then sines, of full layers, then of sliding ones, of the kinds that there are."""
    kinds = {bool(sliding): layer for layer, sliding in enumerate(config["hybrid_layer_pattern"])}
    rows = []
    for _, layer in sorted(kinds.items()):
        a = attention_of(config, layer)
        half = a["rotary_dim"] // 2
        angle = np.arange(positions)[:, None] * a["rope_theta"] ** (-2.0 * np.arange(half) / a["rotary_dim"])
        rows += [np.cos(angle), np.sin(angle)]
    return np.concatenate(rows, -1)


def tape_slots(w: dict[str, Array], config: dict[str, Any], tokens: list[int]) -> list[tuple[str, dict[str, Array]]]:
    """Every operation of the tape in its order: name and layer, and the slots (plan/plan.h) after it that it has changed: x with m,
    x normed for what comes next; routes as "experts" and "shares"."""
    eps, layers = config["layernorm_epsilon"], len(config["moe_layer_freq"])
    norms = [*(w[f"model.layers.{layer}.input_layernorm.weight"] for layer in range(layers)), w["model.norm.weight"]]
    x = w["model.embed_tokens.weight"][tokens].astype(np.float64)
    tape = [("embed", {"x": x, "m": rms_norm(x, norms[0], eps), "angles": angle_rows(config, len(tokens))})]
    for layer, sparse in enumerate(config["moe_layer_freq"]):
        s = layer_slots(w, config, layer, x)
        steps: list[tuple[str, dict[str, Array]]] = [("qkv", {"q": s["q"], "kv": s["kv"]}), ("attention", {"a": s["a"]})]
        steps.append(("out_proj", {"x": s["x"], "m": s["m"]}))
        p = f"model.layers.{layer}.mlp."
        if sparse:
            chosen, weight = expert_weights(w, config, layer, s["m"])
            steps.append(("route", {"experts": chosen, "shares": weight}))
            steps.append(("expert_up", {"u": expert_rows(w, layer, s["m"], chosen)}))
            x = s["x"] + mixture(s["m"], w, p, config)
        else:
            up = silu(s["m"] @ w[f"{p}gate_proj.weight"].T) * (s["m"] @ w[f"{p}up_proj.weight"].T)
            steps.append(("dense_up", {"u": up}))
            x = s["x"] + mlp(s["m"], w, p)
        steps.append(("expert_down" if sparse else "dense_down", {"x": x, "m": rms_norm(x, norms[layer + 1], eps)}))
        tape += [(f"{name} of layer {layer}", slots) for name, slots in steps]
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return [*tape, ("head", {"logits": rms_norm(x, norms[-1], eps) @ head.T})]
