"""The self-check of an open model: its drafter's settings scored on answers of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..weights import Weights
from .drafter import Ids, NumpyDrafter, Shape, Wiring
from .dump import Dump
from .selfcheck import SelfCheck, compare, differing, places, variants

if TYPE_CHECKING:
    from ..drafter import Drafter
    from ..model import Model

__all__ = ["numpy_drafter", "self_check", "wiring_of"]

_ENGINE_ANCHORS = 8  # per answer


def self_check(
    model: Model,
    prompts: Sequence[Any] | None = None,
    *,
    dump: str | os.PathLike[str] | None = None,
    save_dump: str | os.PathLike[str] | None = None,
    answers: int = 12,
    max_new_tokens: int = 128,
    stride: int = 2,
    progress: bool = True,
) -> SelfCheck:
    """Scores every disputed switch of the model's drafter. The checkpoint's own setting should come first.

    prompts: to answer, `answers` of this package's by default. dump: recorded answers instead; save_dump: where to record them.
    stride: between the tokens from which a block is drafted.

    Raises ValueError without a drafter, for a damaged dump, or one without the layers that are to be tapped.
    """
    from ..drafter import open_drafter

    for name, value in (("answers", answers), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, found {value}")

    drafter = model.draft
    if drafter is None:
        raise ValueError("self-check: this model has no drafter")
    own = open_drafter(drafter.folder, model.checkpoint)
    assert own is not None
    top = model.config.num_hidden_layers - 1
    numpy, embedding = numpy_drafter(own, model)
    found = variants(
        wiring_of(own),
        head_dim=own.config.head_dim,
        has_sinks=own.config.sinks,
        has_mask=numpy.mask_row is not None and own.mask_from != "the target's embedding",
        target_theta=model.config.full.rope_theta,
        top=top,
    )
    settings, in_use = differing(found, wiring_of(drafter))
    recorded = _recorded(model, prompts, settings, dump, answers, max_new_tokens, progress)
    if save_dump is not None:
        recorded.save(save_dump)

    def embed(ids: Ids) -> Any:
        return embedding.rows("embed_tokens.weight", ids)

    engine = _engine_drafts(model, recorded, numpy.shape.block, stride)
    return compare(numpy, embed, recorded, settings, in_use, stride=stride, engine=engine)


def wiring_of(drafter: Drafter) -> Wiring:
    """What an opened drafter does, switches applied."""
    config, options = drafter.config, drafter.options
    return Wiring(
        taps=drafter.taps,
        rope_theta=config.rope_theta,
        rotary_dim=config.rotary_dim,
        value_scale=config.attention_value_scale,
        sinks=config.sinks,
        window=config.window if any(config.layer_pattern) else 0,
        window_rule=options.window_rule,
        causal=config.causal,
        mask_embedding=options.mask_embedding,
    )


def numpy_drafter(drafter: Drafter, model: Model) -> tuple[NumpyDrafter, Weights]:
    """The drafter in numpy, and the target's tensors. drafter: opened without switches."""
    config, checkpoint = drafter.config, model.checkpoint
    files: list[Path] = [*map(Path, checkpoint.files), *drafter.files]
    own, target = Weights(drafter.tensors, files), Weights(checkpoint.tensors, files)
    shape = Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        v_head_dim=config.v_head_dim,
        block=config.block_size,
        eps=config.rms_norm_eps,
        sliding=tuple(bool(kind) for kind in config.layer_pattern),
    )
    name = "embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
    head = target[name] if drafter.target_ids is None else target.rows(name, drafter.target_ids)
    token = config.mask_token_id
    row = None if token is None else target.rows("embed_tokens.weight", np.array([token]))[0]
    plain = {name: own[name] for name in own if name != "mask_embedding" and not name.endswith(("_scale", "_scale_inv"))}
    return NumpyDrafter(plain, shape, head=head, mask=own["mask_embedding"], mask_row=row, target_ids=drafter.target_ids), target


def _recorded(
    model: Model,
    prompts: Sequence[Any] | None,
    settings: dict[str, Wiring],
    dump: str | os.PathLike[str] | None,
    answers: int,
    max_new_tokens: int,
    progress: bool,
) -> Dump:
    layers = sorted({layer for wiring in settings.values() for layer in wiring.taps})
    if dump is None:
        asked = list(prompts) if prompts is not None else _prompts(answers)
        return Dump.make(model, asked, layers, max_new_tokens=max_new_tokens, progress=progress)
    found = Dump.load(dump)
    missing = [layer for layer in layers if layer not in found.layers]
    if missing:
        raise ValueError(f"{dump}: expected the streams after layers {layers}, found none after {missing}")
    hidden = model.config.hidden_size
    wrong = [a.states.shape for a in found.answers if a.states.shape != (len(found.layers), len(a.tokens), hidden)]
    if wrong:
        raise ValueError(f"{dump}: expected streams [{len(found.layers)}, T, {hidden}] of this model, found {list(wrong[0])}")
    return replace(found, answers=found.answers[:answers])


def _prompts(count: int) -> list[str]:
    """First turns, taken from the package's scenarios in turn."""
    from .scenarios import load_prompts

    sets = load_prompts()
    return [sets[at % len(sets)].items[at // len(sets) % len(sets[at % len(sets)].items)].turns[0] for at in range(count)]


def _engine_drafts(model: Model, dump: Dump, block: int, stride: int) -> dict[tuple[int, int], Ids]:
    """What the engine itself drafts at some anchors, by number of the answer and anchor."""
    drafts: dict[tuple[int, int], Ids] = {}
    for number, answer in enumerate(dump.answers):
        every = places(answer, block, stride)
        anchors = every[:: max(1, len(every) // _ENGINE_ANCHORS)]
        if len(anchors):
            logits = model.draft_logits(answer.tokens, [int(anchor) for anchor in anchors])
            drafts |= {(number, int(anchor)): row for anchor, row in zip(anchors, logits.argmax(-1), strict=True)}
    return drafts
