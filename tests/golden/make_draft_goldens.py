"""Writes tests/golden/draft_*.npz: what transformers' DFlash assistant (Muse Glimmer's) drafts, in float32, on made drafters.

    python tests/golden/make_draft_goldens.py        # needs the dependency group `golden`: torch and transformers

That class has no sinks, no value scale and turns whole heads; the rest is what every DFlash drafter has. It runs as its generator
runs it: round by round on one cache, from which the last block is cropped, with the newly accepted positions as context.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from draft_reference import draft_settings, draft_tensors  # noqa: E402
from reference import read_config, reference_forward, reference_tensors  # noqa: E402

from mimo_ultraspeed.make import make  # noqa: E402

_PLAIN = {"sinks": False, "value_scale": 1.0, "rotary": 1.0, "mask": "tensor"}
CASES = {
    "draft_full": {"seed": 21, "draft": _PLAIN | {"window": 0}},
    "draft_sliding": {"seed": 22, "draft": _PLAIN | {"window": 12, "layers": 3, "kv_heads": 2}},
}
ANCHORS = [1, 5, 6, 14, 30, 39]
ROWS = 48


def digest_of(tensors: dict[str, np.ndarray]) -> float:
    """A sum that changes with any weight."""
    return float(sum(np.abs(tensors[name]).astype(np.float64).sum() for name in sorted(tensors)))


def assistant(w: dict[str, np.ndarray], s: dict, hidden_size: int):
    import torch
    from transformers import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

    config = MuseGlimmerAssistantConfig(
        hidden_size=hidden_size,
        intermediate_size=len(w["layers.0.mlp.gate_proj.weight"]),
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"],
        head_dim=len(w["layers.0.self_attn.q_norm.weight"]),
        rms_norm_eps=s["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": s["theta"]},
        max_position_embeddings=4096,
        # Theirs counts distances: a key as far as the window itself is seen.
        sliding_window=s["window"] - 1 if s["window"] else 2048,
        layer_types=["sliding_attention" if s["window"] else "full_attention"] * s["layers"],
        block_size=s["block"],
        target_layer_ids=s["taps"],
        attn_implementation="eager",
    )
    model = MuseGlimmerAssistantModel(config).eval().float()
    names = {"fc.weight": "encoder.fc.weight", "hidden_norm.weight": "encoder.output_norm_enc.weight"}
    state = {names.get(name, name): torch.tensor(value) for name, value in w.items() if name != "mask_embedding"}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model


def run(path: Path) -> dict[str, np.ndarray]:
    import torch
    from transformers.cache_utils import DFlashCache

    tokens = [int(token) for token in np.random.default_rng(5).integers(0, 512, ROWS)]
    target = reference_tensors(path)
    hidden = reference_forward(target, read_config(path), tokens)[1]
    w, s = draft_tensors(path / "dflash"), draft_settings(path / "dflash")
    model = assistant(w, s, hidden.shape[-1])
    cache = DFlashCache(config=model.config)
    cache.activate_past_recording()
    logits, done = [], 0
    with torch.no_grad():
        for anchor in ANCHORS:
            context = np.concatenate([hidden[layer, done:anchor] for layer in s["taps"]], -1)
            cache.set_previous_accepted_tokens(anchor - done)
            if done:
                cache.crop(-s["block"])
            block = np.array([target["model.embed_tokens.weight"][tokens[anchor]]] + [w["mask_embedding"]] * (s["block"] - 1))
            out = model(
                noise_embeds=torch.tensor(block)[None],
                context_hidden_states=torch.tensor(context)[None],
                position_ids=torch.arange(done, anchor + s["block"])[None],
                past_key_values=cache,
            )
            logits.append(out.last_hidden_state[0, 1:].numpy() @ target["lm_head.weight"].T)
            done = anchor
    return {
        "tokens": np.array(tokens),
        "anchors": np.array(ANCHORS),
        "logits": np.array(logits, np.float32)[..., ::4],
        "digest": np.array(digest_of(w)),
    }


def main() -> None:
    for name, recipe in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            results = run(make(Path(folder) / "model", progress=False, **recipe))
        np.savez_compressed(HERE / f"{name}.npz", **results)
        print(name, results["logits"].shape, float(np.abs(results["logits"]).max()))


if __name__ == "__main__":
    main()
