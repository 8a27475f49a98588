"""Writes tests/golden/*.npz: what transformers' MiMo-V2-Flash answers, in float32, on made checkpoints.

    python tests/golden/make_goldens.py        # needs the dependency group `golden`: torch and transformers

Only the made checkpoint's recipe is stored, not its weights. `digest` is a checksum of them: a test that sees another one
knows that the recipe, and not the arithmetic, has changed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from reference import read_config, reference_tensors  # noqa: E402

from mimo_ultraspeed.make import make  # noqa: E402

CASES = {
    "split_bf16": {"seed": 11, "layout": "flash", "weights": "bf16", "router": "f32"},
    "split_fp8_bf16_router": {"seed": 12, "layout": "flash", "weights": "fp8", "router": "bf16"},
    "fused_mxfp4": {"seed": 13, "layout": "fused", "weights": "mxfp4", "router": "f32"},
}
ROWS = 40


def digest_of(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Sums that change with any weight."""
    return np.array([float(np.abs(tensors[name]).astype(np.float64).sum()) for name in sorted(tensors)]).sum()


def transformers_model(config: dict, tensors: dict[str, np.ndarray]):
    import torch
    from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

    kinds = ("full_attention", "sliding_attention")
    thetas = (config["rope_theta"], config["swa_rope_theta"])
    assert config["swa_num_key_value_heads"] == 2 * config["num_key_value_heads"], "the class doubles them by itself"
    theirs = MiMoV2FlashConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        moe_intermediate_size=config["moe_intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        v_head_dim=config["v_head_dim"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["layernorm_epsilon"],
        n_routed_experts=config["n_routed_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        routed_scaling_factor=config["routed_scaling_factor"],
        norm_topk_prob=config["norm_topk_prob"],
        attention_value_scale=config["attention_value_scale"],
        # `sliding_window` is the number of keys a query sees, itself included; `sliding_window_size` would add one to it.
        sliding_window=config["sliding_window"],
        layer_types=[kinds[i] for i in config["hybrid_layer_pattern"]],
        mlp_layer_types=[("dense", "sparse")[i] for i in config["moe_layer_freq"]],
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": config["partial_rotary_factor"]}
            for kind, theta in zip(kinds, thetas, strict=True)
        },
        tie_word_embeddings=False,
        bos_token_id=None,
        attn_implementation="eager",
    )
    model = MiMoV2FlashForCausalLM(theirs).to(torch.float32).eval()
    state = {}
    for name, parameter in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            experts = [
                np.concatenate([tensors[f"{stem}{e}.gate_proj.weight"], tensors[f"{stem}{e}.up_proj.weight"]])
                for e in range(config["n_routed_experts"])
            ]
            value = np.stack(experts)
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            value = np.stack([tensors[f"{stem}{e}.down_proj.weight"] for e in range(config["n_routed_experts"])])
        else:
            value = tensors[name.replace(".sinks", ".attention_sink_bias")]
        assert value.shape == tuple(parameter.shape), name
        state[name] = torch.from_numpy(np.array(value))
    model.load_state_dict(state, strict=True)
    return model


def transformers_answer(model, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits [T, V] and the output of every layer [L, T, H]."""
    import torch

    hidden: list[np.ndarray] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _args, out: hidden.append(out[0].numpy()))
    with torch.no_grad():
        logits = model(torch.tensor(tokens)[None], use_cache=False).logits[0].numpy()
    return logits, np.stack(hidden)


def main() -> None:
    for case, recipe in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder) / case, progress=False, **recipe)
            config, tensors = read_config(path), reference_tensors(path)
        tokens = np.random.SFC64(recipe["seed"]).random_raw(ROWS) % config["vocab_size"]
        logits, hidden = transformers_answer(transformers_model(config, tensors), tokens.astype(np.int64))
        # Every fourth column keeps the files small.
        np.savez_compressed(
            HERE / f"{case}.npz",
            tokens=tokens.astype(np.int32),
            logits=logits[:, ::4],
            hidden=hidden[:, :, ::4],
            digest=digest_of(tensors),
        )
        print(case, (HERE / f"{case}.npz").stat().st_size, "bytes, largest logit", np.abs(logits).max())


if __name__ == "__main__":
    main()
