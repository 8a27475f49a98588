"""Opens a DFlash drafter's folder: config, tensors and the mask embedding, checked against the target; reads no matrices."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import CONFIG, INDEX, Checkpoint, Folder, Index, TableRow, Tensor, group, read_shards
from .draft import Draft, DraftConfig
from .errors import CheckpointError
from .safetensors_read import show

__all__ = ["Drafter", "open_drafter"]

SIDECAR = "mask_embedding.pt"
SHIPPED = Path(__file__).parent / "drafts"
_MASK = "model.mask_embedding"
_PLAIN_BYTES = {"BF16": 2, "F32": 4}


@dataclass(frozen=True)
class Drafter:
    """An opened drafter, with the switches of `options` applied."""

    folder: Path
    config: DraftConfig
    options: Draft
    tensors: Sequence[Tensor] = field(repr=False)
    """With `model.` before every name; files are numbered after the target's."""
    files: Sequence[Path] = field(repr=False)
    target_ids: NDArray[np.int64] | None = field(repr=False)
    """[V'] the target's id of everything the drafter can draft; None: the whole vocabulary."""
    mask_from: str
    """Where the mask embedding comes from."""
    target_layers: int
    vocab_size: int
    """V, of the target."""
    max_positions: int

    @property
    def block_size(self) -> int:
        """B: rows of a block, the anchor included; B - 1 tokens are drafted at once."""
        return self.config.block_size

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers of the target whose residual streams make the context."""
        shift = self.options.tap_shift
        return tuple(min(max(layer + shift, 0), self.target_layers - 1) for layer in self.config.target_layer_ids)

    @property
    def draft_vocab_size(self) -> int:
        """V': ids that can be drafted."""
        return self.vocab_size if self.target_ids is None else len(self.target_ids)

    @property
    def markov_rank(self) -> int:
        """Rank of the head's bias by the token before; 0 without one."""
        return next((tensor.shape[1] for tensor in self.tensors if tensor.name == "model.markov.w1.weight"), 0)

    @property
    def parameters(self) -> int:
        """Trained numbers of the drafter itself; embedding and head are the target's."""
        count = 0
        for tensor in self.tensors:
            if tensor.name != _MASK and not tensor.name.endswith(("_scale", "_scale_inv")):
                count += math.prod(tensor.shape) * (2 if tensor.dtype == "U8" else 1)
        return count

    def table(self) -> list[TableRow]:
        """Its tensors, grouped over layers."""
        return group(self.tensors)

    def to_core(self) -> dict[str, Any]:
        """The `draft` argument of _core.Engine."""
        config = self.config
        attention = {
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "v_head_dim": config.v_head_dim,
            "rotary_dim": config.rotary_dim,
            "rope_theta": config.rope_theta,
            "sinks": int(config.sinks),
        }
        names = {tensor.name for tensor in self.tensors}
        return {
            "config": {
                "hidden": config.hidden_size,
                "layers": config.num_hidden_layers,
                "vocab": self.draft_vocab_size,
                "max_positions": self.max_positions,
                "dense_width": config.intermediate_size,
                "expert_width": 0,
                "experts": 0,
                "top_k": 0,
                "norm_eps": config.rms_norm_eps,
                "value_scale": config.attention_value_scale,
                "routed_scale": 1.0,
                "norm_topk": 0,
                "tied_head": 0,
                "qkv_chunks": 0,
                "full": attention | {"window": 0},
                "sliding": attention | {"window": config.window},
                "layer_sliding": list(config.layer_pattern),
                "layer_sparse": [0] * config.num_hidden_layers,
            },
            "tensors": list(self.tensors),
            "taps": list(self.taps),
            "block": config.block_size,
            "short_block": config.short_block_size,
            "qk_norm": int("model.layers.0.self_attn.q_norm.weight" in names),
            "markov_rank": self.markov_rank,
            "causal_full": int(config.causal[0]),
            "causal_sliding": int(config.causal[1]),
            "window_from_anchor": int(self.options.window_rule == "anchor"),
            "target_ids": None if self.target_ids is None else self.target_ids.tolist(),
        }


def open_drafter(
    draft: str | os.PathLike[str] | bool | Draft | None, checkpoint: Checkpoint, *, shipped: str | None = None
) -> Drafter | None:
    """The drafter that `draft` names, for a target that is `checkpoint`; None when it names none.

    draft: "auto", True (as "auto", but there must be one), None or False, the folder of a drafter, or a `Draft`.
    shipped: name of an embedded model whose drafter comes with the package.
    Raises CheckpointError when the files contradict each other or the target, OSError when one is missing; warns (UserWarning)
    when a drafter has no mask embedding.
    """
    if draft is None or draft is False:
        return None
    options = draft if isinstance(draft, Draft) else Draft("auto" if draft is True else draft)
    if options.path == "auto":
        places = [checkpoint.folder / "dflash", *([SHIPPED / shipped] if shipped is not None else [])]
        folder = next((place for place in places if (place / CONFIG).exists()), None)
        if folder is None:
            if options.switches() or draft is True:
                raise FileNotFoundError(
                    f"{places[0]}: expected the folder of a drafter, as draft={draft!r} asks for one, found none"
                )
            return None
    else:
        folder = Path(options.path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{options.path}: expected the folder of a drafter, found none")
    try:
        return _open(Folder(folder), options, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.name}: {error}") from None


def _open(folder: Folder, options: Draft, checkpoint: Checkpoint) -> Drafter:
    target = checkpoint.config
    config = DraftConfig.from_dict(folder.json_object(CONFIG), target_layers=target.num_hidden_layers, source=CONFIG)
    _check_target(config, checkpoint)
    indices = sorted(path.name for path in folder.path.glob("*.safetensors.index.json"))
    name = INDEX if INDEX in indices else next(iter(indices), None)
    index = Index.read(folder, name) if name is not None else None
    shards = index.shards if index is not None else folder.single_shards()
    found, _, files = read_shards(folder, shards, index)
    first = len(checkpoint.files)
    tensors = {
        (tensor.name if tensor.name.startswith("model.") else f"model.{tensor.name}"): tensor._replace(file=tensor.file + first)
        for tensor in found
    }
    if len(tensors) != len(found):
        raise CheckpointError("expected each tensor once, found one with and without `model.` before its name")
    target_ids = _take_ids(tensors, files, first, target.vocab_size)
    config = _apply(options, config)
    if not config.sinks:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".attention_sink_bias")}
    mask, mask_from = _find_mask(folder, options, config, checkpoint, tensors, first + len(files))
    if mask is not None:
        tensors[_MASK] = mask
        if mask.file == first + len(files):
            files = [*files, folder.file(SIDECAR)]
    return Drafter(
        folder=folder.path,
        config=config,
        options=options,
        tensors=[tensor._replace(name=key) for key, tensor in tensors.items()],
        files=files,
        target_ids=target_ids,
        mask_from=mask_from,
        target_layers=target.num_hidden_layers,
        vocab_size=target.vocab_size,
        max_positions=target.max_position_embeddings,
    )


def _check_target(config: DraftConfig, checkpoint: Checkpoint) -> None:
    target = checkpoint.config
    for what, found, expected in (
        ("hidden_size", config.hidden_size, target.hidden_size),
        ("num_target_layers", config.num_target_layers, target.num_hidden_layers),
    ):
        if found is not None and found != expected:
            raise CheckpointError(f"{CONFIG}: {what}: expected {expected} as in the target, found {found}")
    for what, found, least in (("vocab_size", config.vocab_size, 0), ("mask_token_id", config.mask_token_id, 1)):
        if found is not None and found + least > target.vocab_size:
            raise CheckpointError(
                f"{CONFIG}: {what}: expected at most {target.vocab_size - least}, as the target has {target.vocab_size} ids,"
                f" found {found}"
            )


def _apply(options: Draft, config: DraftConfig) -> DraftConfig:
    """The config with the switches applied."""
    changes: dict[str, Any] = {
        "rope_theta": options.rope_theta,
        "rotary_dim": options.rotary_dim,
        "attention_value_scale": options.value_scale,
        "sinks": options.sinks,
        "causal": None if options.causal is None else (options.causal, options.causal),
    }
    if options.window is not None:
        changes |= {"window": options.window, "layer_pattern": (int(options.window > 0),) * config.num_hidden_layers}
    if options.rotary_dim is not None and (options.rotary_dim > config.head_dim or options.rotary_dim % 2):
        raise ValueError(f"rotary_dim: expected an even number up to head_dim {config.head_dim}, found {options.rotary_dim}")
    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def _take_ids(tensors: dict[str, Tensor], files: Sequence[Path], first: int, vocab: int) -> NDArray[np.int64] | None:
    """Takes d2t and t2d out of the tensors; the ids that d2t lists (id = index + offset), None without one."""
    tensors.pop("model.t2d", None)
    offsets = tensors.pop("model.d2t", None)
    if offsets is None:
        return None
    if offsets.dtype != "I64" or len(offsets.shape) != 1 or not 1 <= offsets.shape[0] <= vocab:
        raise CheckpointError(
            f"d2t: expected I64 [V'] with V' from 1 to the target's {vocab}, found {offsets.dtype} {list(offsets.shape)}"
        )
    with files[offsets.file - first].open("rb") as file:
        file.seek(offsets.begin)
        raw = file.read(offsets.end - offsets.begin)
    if len(raw) != 8 * offsets.shape[0]:
        raise CheckpointError(f"d2t: expected {8 * offsets.shape[0]} bytes, found {len(raw)}")
    ids: NDArray[np.int64] = np.frombuffer(raw, "<i8") + np.arange(offsets.shape[0])
    bad = np.flatnonzero((ids < 0) | (ids >= vocab))
    if bad.size:
        raise CheckpointError(f"d2t: index {bad[0]}: expected an id below the target's {vocab}, found {ids[bad[0]]}")
    if len(np.unique(ids)) != len(ids):
        raise CheckpointError("d2t: expected different ids, found one twice")
    return ids


def _find_mask(
    folder: Folder, options: Draft, config: DraftConfig, checkpoint: Checkpoint, tensors: dict[str, Tensor], sidecar: int
) -> tuple[Tensor | None, str]:
    """The mask embedding, None if it is among `tensors`; and where it comes from. sidecar: number of the sidecar's file."""
    if options.mask_embedding:
        if _MASK in tensors:
            return None, "a tensor"
        if folder.has(SIDECAR):
            return _read_sidecar(folder.file(SIDECAR), config.hidden_size)._replace(file=sidecar), SIDECAR
        warnings.warn(
            f"{folder.path.name}: this drafter has no mask embedding (a tensor, or {SIDECAR}); the target's own row of the mask "
            "token takes its place, and few drafts may come true",
            UserWarning,
            stacklevel=5,
        )
    tensors.pop(_MASK, None)
    if config.mask_token_id is None:
        raise CheckpointError(f"{CONFIG}: mask_token_id: expected a token id, as there is no mask embedding, found nothing")
    table = next((tensor for tensor in checkpoint.tensors if tensor.name == "model.embed_tokens.weight"), None)
    if table is None or table.dtype not in _PLAIN_BYTES:
        raise CheckpointError("model.embed_tokens.weight: expected F32 or BF16 in the target, for the row of the mask token")
    size = config.hidden_size * _PLAIN_BYTES[table.dtype]
    begin = table.begin + config.mask_token_id * size
    return Tensor(_MASK, table.dtype, (config.hidden_size,), table.file, begin, begin + size), "the target's embedding"


def _read_sidecar(path: Path, hidden: int) -> Tensor:
    """Where the embedding lies in a file of torch.save: the bytes of its one storage. Nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["data", "0"]]
            orders = [name for name in archive.namelist() if name.split("/")[1:] == ["byteorder"]]
            order = archive.read(orders[0])[:8] if orders else b"little"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: expected a zip file as torch.save writes it, found {show(str(error))}") from None
    if len(entries) != 1 or order != b"little":
        found = f"{len(entries)} of them" if len(entries) != 1 else f"byte order {show(order.decode('latin-1'))}"
        raise CheckpointError(f"{path.name}: expected one little-endian storage data/0, found {found}")
    entry = entries[0]
    dtype = {hidden * size: name for name, size in _PLAIN_BYTES.items()}.get(entry.file_size)
    if dtype is None or entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{path.name}: {entry.filename}: expected {2 * hidden} bytes (BF16 [{hidden}]), not compressed,"
            f" found {entry.file_size}{'' if entry.compress_type == zipfile.ZIP_STORED else ', compressed'}"
        )
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path.name}: {entry.filename}: expected a local header of a zip file, found none")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    begin = entry.header_offset + 30 + name_bytes + extra_bytes
    return Tensor(_MASK, dtype, (hidden,), 0, begin, begin + entry.file_size)
