"""How far a model is from the one it was made of: perplexity, KL divergence and agreement on running text.

from mimo_ultraspeed import evaluate
print(evaluate.quality(["./naive", "./calibrated"], ["held-out.txt"], reference="SmolLM2-135M-Instruct.Q4_1.gguf"))
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..display import bar
from ..provenance import software
from ..texts import read_windows
from .document import load_document, save_document
from .environment import machine
from .scorer import Scorer, open_scorer

__all__ = ["Quality", "quality"]

FORMAT = "mimo-ultraspeed quality 1"
ALL = "all"
"""The row that pools every text."""
_RESAMPLES = 2000
_ROWS = 32  # positions at a time: what is made of their logits stays in the cache
_COLUMNS = ("tokens", "perplexity", "95 %", "ratio", "95 %", "KL", "95 %", "top-1", "95 %")
_NOTES = """\
ratio   of perplexity, to the reference's; KL: mean over tokens of KL(reference || model), in nats
top-1   share of positions where both hold the same token for the likeliest
95 %    bootstrap over windows"""


@dataclass(frozen=True)
class Quality:
    """A result: `data` is JSON, `figures` by text and model what the table shows."""

    data: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote. Raises OSError, and ValueError for another file."""
        return cls(load_document(path, "evaluate quality", FORMAT))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        save_document(path, self.data)

    @property
    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By text (and "all"), then by model: tokens, perplexity, ratio, kl, top1, each of the last four with `_ci95`."""
        found: dict[str, dict[str, dict[str, Any]]] = self.data["figures"]
        return found

    def table(self) -> str:
        """Text: a line per text and model."""
        rows = [["", "", *_COLUMNS]]
        for text, by_model in self.figures.items():
            rows += [[text, name, *_cells(one)] for name, one in by_model.items()]
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = [
            "  ".join(f"{cell:<{w}}" if at < 2 else f"{cell:>{w}}" for at, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        about = f"mimo-ultraspeed {self.data['software']['version']} {self.data['software']['commit'] or ''}"
        about += f"; windows of {self.data['settings']['window']} tokens; reference {self.data['settings']['reference']}"
        return "\n".join([*(line.rstrip() for line in lines), "", about, "", _NOTES])

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"


def quality(
    models: Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]],
    texts: Sequence[str | os.PathLike[str]],
    *,
    reference: str | os.PathLike[str],
    window: int = 512,
    tokens: int | None = 20_000,
    precision: str = "fast",
    threads: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Quality:
    """Scores models against a reference, teacher-forced, on windows of text.

    models: checkpoints of this engine (a folder, a hub id or "smollm2-135m"), Llama-family sources of `convert` (a .gguf file or
      a Hugging Face folder, run unrounded with float32 activations), or "llama-cpp:FILE.gguf" for a peer through
      llama-cpp-python; a mapping names them. reference: the same.
    texts: files as in `read_windows`. window: tokens of a window, each read from an empty context. tokens: about as many per text,
      spread evenly over it; None is all. precision: of this engine's checkpoints. seed: of the bootstrap. out: JSON file.

    Raises ValueError for models whose vocabularies differ or texts that cannot be read, OSError, CheckpointError, ImportError.
    """
    named = dict(models) if isinstance(models, Mapping) else {_name(one): one for one in models}
    if len(named) < len(models):
        raise ValueError(f"models: expected different names, found {[_name(one) for one in models]}; a mapping names them")
    names = [Path(text).stem for text in texts]
    if not texts or len(set(names)) < len(names):
        raise ValueError(f"texts: expected at least one, each of its own name, found {names}")
    if "reference" in named:
        raise ValueError('models: expected another name than "reference", which is taken')
    with ExitStack() as stack:
        scorers: dict[str, Scorer] = {}
        for name, one in {"reference": reference, **named}.items():
            scorers[name] = stack.enter_context(open_scorer(one, window=window, precision=precision, threads=threads))
        first = scorers["reference"]
        for name, scorer in scorers.items():
            if scorer.vocab != first.vocab:
                raise ValueError(f"{name}: expected the reference's vocabulary of {first.vocab}, found {scorer.vocab}")
        per_text = {
            name: read_windows(text, first.tokenizer, vocab=first.vocab, length=window, tokens=tokens)
            for name, text in zip(names, texts, strict=True)
        }
        records = list(_records(scorers, per_text, progress))
    settings = {"window": window, "tokens": tokens, "precision": precision, "seed": seed, "reference": _name(reference)}
    data = {"format": FORMAT, "settings": settings, "models": {name: _name(one) for name, one in named.items()}}
    data |= {"machine": machine(), "software": software(), "figures": _figures(records, [*names, ALL], list(scorers), seed)}
    result = Quality(data | {"windows": records})
    if out is not None:
        result.save(out)
    return result


def _name(model: str | os.PathLike[str]) -> str:
    text = os.fspath(model)
    prefix, colon, path = text.partition("llama-cpp:")
    return f"llama-cpp {Path(path).name}" if colon and not prefix else Path(text).name


def _records(
    scorers: Mapping[str, Scorer], per_text: Mapping[str, Sequence[NDArray[np.int64]]], progress: bool
) -> Iterator[dict[str, Any]]:
    """One per window and model: tokens and sums over them."""
    total = sum(map(len, per_text.values()))
    with bar(progress, total=total, unit="window", desc="quality") as shown:
        for text, windows in per_text.items():
            for number, ids in enumerate(windows):
                wanted: NDArray[np.float32] | None = None
                for name, scorer in scorers.items():
                    logits = scorer.logits(ids[:-1])
                    wanted = logits if wanted is None else wanted
                    yield {"text": text, "window": number, "model": name, **_sums(wanted, logits, ids[1:])}
                shown.update(1)


def _sums(wanted: NDArray[np.float32], found: NDArray[np.float32], targets: NDArray[np.int64]) -> dict[str, float]:
    """wanted, found [T, V] logits of the reference and of a model, targets [T]."""
    nll = kl = 0.0
    same = 0
    for at in range(0, len(targets), _ROWS):
        rows = slice(at, at + _ROWS)
        p, q = (_log_softmax(one[rows]) for one in (wanted, found))
        nll -= float(np.take_along_axis(q, targets[rows, None], 1).sum(dtype=np.float64))
        kl += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        same += int((p.argmax(1) == q.argmax(1)).sum())
    return {"tokens": len(targets), "nll": nll, "kl": kl, "same": same}


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted: NDArray[np.float32] = logits - logits.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, dtype=np.float64, keepdims=True)).astype(np.float32)
    return shifted


def _figures(records: Sequence[Mapping[str, Any]], texts: Sequence[str], models: Sequence[str], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts if len(texts) > 2 else texts[:1]:
        mine = [one for one in records if text in (one["text"], ALL)]
        count = sum(one["model"] == models[0] for one in mine)
        picked = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
        sums = {
            model: np.array(
                [[one[k] for k in ("tokens", "nll", "kl", "same")] for one in mine if one["model"] == model], np.float64
            )
            for model in models
        }
        found[text] = {model: _figure(sums[model], sums[models[0]], picked) for model in models}
    return found


def _figure(sums: NDArray[np.float64], reference: NDArray[np.float64], picked: NDArray[np.int64]) -> dict[str, Any]:
    """sums [windows, (tokens, nll, kl, same)], picked [resamples, windows]."""

    def derived(mine: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
        tokens, nll, kl, same = np.moveaxis(mine, -1, 0)
        values = {"perplexity": np.exp(nll / tokens), "ratio": np.exp((nll - other[..., 1]) / tokens)}
        return values | {"kl": kl / tokens, "top1": same / tokens}

    told: dict[str, Any] = {"tokens": int(sums[:, 0].sum()), "windows": len(sums)}
    drawn = derived(sums[picked].sum(1), reference[picked].sum(1))
    for name, value in derived(sums.sum(0), reference.sum(0)).items():
        told |= {name: float(value), f"{name}_ci95": [float(end) for end in np.percentile(drawn[name], [2.5, 97.5])]}
    return told


def _cells(one: Mapping[str, Any]) -> list[str]:
    cells = [str(one["tokens"])]
    for name, form in (("perplexity", ".3f"), ("ratio", ".4f"), ("kl", ".4f"), ("top1", ".4f")):
        low, high = one[f"{name}_ci95"]
        cells += [format(one[name], form), f"{low:{form}}-{high:{form}}"]
    return cells
