"""Finds a checkpoint (a folder or a hub id) and reads what describes it: config, index, and every shard's header.

Weights are not read here. The core reads them later from `files` by the byte spans listed in `tensors`, and checks names,
shapes and spans again. A checkpoint's files are not trusted: no file names code, a URL, or a path outside the folder.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .config import ModelConfig
from .errors import CheckpointError
from .safetensors_read import parse_json, read_header, show

__all__ = ["Checkpoint", "Folder", "Index", "TableRow", "Tensor", "group", "locate", "read_shards"]

CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "dflash/*"]
_HUB_NEVER = ["*.py", "*.so", "*.sh"]  # dflash/ may carry code; nothing here would run it
_MAX_JSON_BYTES = 16 << 20
_MAX_INDEX_BYTES = 100 << 20

# Parts of a published checkpoint that the language model does not use.
_SKIPPED = re.compile(r"(?:model\.)?(?:(?P<MTP>mtp|model_mtp)|(?P<vision>visual|vision)|(?P<audio>audio)|(?P<speech>speech))\w*\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class Tensor(NamedTuple):
    """One tensor as the core takes it: begin and end are byte offsets in the file with index `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    end: int


@dataclass(frozen=True)
class TableRow:
    """Tensors that differ in layer and expert number only."""

    name: str
    """Numbers are written `*`: model.layers.*.mlp.experts.*.up_proj.weight."""
    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: all of its descriptions read and checked against each other, none of its weights."""

    folder: Path
    config: ModelConfig
    generation: Mapping[str, Any] = field(repr=False)
    """generation_config.json, {} when there is none."""
    tensors: Sequence[Tensor] = field(repr=False)
    """Tensors of the text model."""
    files: Sequence[Path] = field(repr=False)
    skipped: Mapping[str, int]
    """Tensors the text model does not use, by group: "MTP", "vision", "audio", "speech"."""
    tp_size: int | None
    """Chunks of the fused qkv tensors as the index states it."""

    @classmethod
    def open(
        cls, path_or_id: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool | None = None
    ) -> Checkpoint:
        """Opens a folder, or a hub id ("owner/name") through huggingface_hub.

        revision: branch, tag or commit of a hub id. local_files_only: True uses the hub's cache alone; None leaves it to
        HF_HUB_OFFLINE.
        Raises CheckpointError when the files contradict each other or their formats, OSError when one is missing or cannot
        be read; warns (UserWarning) once about skipped tensors and once about unknown config keys.
        """
        folder = Folder(locate(path_or_id, revision=revision, local_files_only=local_files_only))
        config = ModelConfig.from_dict(folder.json_object(CONFIG), source=CONFIG)
        generation = folder.json_object(GENERATION) if folder.has(GENERATION) else {}
        index = Index.read(folder) if folder.has(INDEX) else None
        names = index.shards if index is not None else folder.single_shards()
        tensors, skipped, files = read_shards(folder, names, index)
        if skipped:
            listed = ", ".join(f"{count} {group} tensors" for group, count in skipped.items())
            warnings.warn(f"{folder.path.name}: skipped {listed}", UserWarning, stacklevel=2)
        return cls(folder.path, config, generation, tensors, files, skipped, index.tp_size if index is not None else None)

    @property
    def qkv_chunks(self) -> int:
        """Chunks [Q|K|V] of each fused qkv tensor; 0 when q, k and v are split. Raises CheckpointError when heads do not divide."""
        config = self.config
        if not config.fused_qkv:
            return 0
        kinds = {kind: (config.full, config.sliding)[kind] for kind in sorted(set(config.hybrid_layer_pattern))}
        chunks = self.tp_size or next(iter(kinds.values())).num_kv_heads
        for attention in kinds.values():
            for what, heads in (("query", attention.num_heads), ("key/value", attention.num_kv_heads)):
                if heads % chunks:
                    source = f"{INDEX}: metadata: tp_size" if self.tp_size else f"{CONFIG}: num_key_value_heads"
                    raise CheckpointError(f"{source}: expected a divisor of {heads} {what} heads, found {chunks}")
        return chunks

    def core_arguments(self) -> tuple[dict[str, Any], list[Tensor], list[str]]:
        """config, tensors and files as _core.Engine takes them."""
        return self.config.to_core(self.qkv_chunks), list(self.tensors), [str(path) for path in self.files]

    def table(self) -> list[TableRow]:
        """The text model's tensors, grouped over layers and experts, in the order of first appearance."""
        return group(self.tensors)


def group(tensors: Sequence[Tensor]) -> list[TableRow]:
    """Tensors grouped over layers and experts, in the order of first appearance."""
    counts: dict[tuple[str, str], list[int]] = {}
    for tensor in tensors:
        row = counts.setdefault((_NUMBER.sub("*", tensor.name), tensor.dtype), [0, 0])
        row[0] += 1
        row[1] += tensor.end - tensor.begin
    return [TableRow(name, dtype, count, size) for (name, dtype), (count, size) in counts.items()]


def locate(path_or_id: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool | None = None) -> Path:
    """The folder of a checkpoint: `path_or_id` itself when it is one, else the hub's snapshot of that id.

    A snapshot holds *.safetensors, *.json, *.jinja and dflash/ only. Raises OSError when there is no such folder or the hub
    does not give it.
    """
    text = os.fspath(path_or_id)
    path = Path(text).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise NotADirectoryError(f"{text}: expected the folder of a checkpoint, found a file")
    if not isinstance(path_or_id, str) or not _HUB_ID.fullmatch(text):
        raise FileNotFoundError(f"{text}: expected the folder of a checkpoint or a hub id like owner/name, found no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise OSError(f"{text}: no such folder, and hub ids need `pip install huggingface_hub`; or pass a local folder") from None
    try:
        found = snapshot_download(
            text,
            revision=revision,
            local_files_only=bool(local_files_only),
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_NEVER,
        )
    except Exception as error:  # its errors come from several libraries and share no base class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OSError(
            f"{text}: no such folder, and the hub does not give it ({type(error).__name__}: {reason[0]}); "
            "download the checkpoint elsewhere and pass the path of its folder instead"
        ) from error
    return Path(found).resolve()


class Folder:
    """A checkpoint's folder; no name leads out of it, but for the links a hub cache makes into its own repository."""

    def __init__(self, path: Path) -> None:
        self.path = path
        root = path.resolve()
        self._roots = [root]
        for snapshot in (root, root.parent):  # of the hub's cache, or a folder in one
            blobs = snapshot.parent.parent / "blobs"
            if snapshot.parent.name == "snapshots" and blobs.is_dir():
                self._roots.append(blobs)

    def has(self, name: str) -> bool:
        """There is an entry of that name."""
        return (self.path / name).exists() or (self.path / name).is_symlink()

    def file(self, name: str, source: str = "") -> Path:
        """The regular file of that name; source: which file names it, for messages."""
        pure = PurePosixPath(name)
        if not name or "\\" in name or "\0" in name or ":" in name or pure.is_absolute() or ".." in pure.parts:
            raise CheckpointError(f"{source}expected the name of a file in the folder, found {show(name)}")
        path = self.path / pure
        try:
            target = path.resolve(strict=True)
        except FileNotFoundError:
            raise FileNotFoundError(f"{source}expected the file {show(name)} in {self.path}, found none") from None
        except RuntimeError:  # a loop of links, before Python 3.13
            raise OSError(f"{source}{show(name)}: a loop of links") from None
        if not any(target.is_relative_to(root) for root in self._roots):
            raise CheckpointError(f"{source}{show(name)}: expected a file in the folder, found a link out of it")
        if not target.is_file():
            raise CheckpointError(f"{source}{show(name)}: expected a regular file")
        return target

    def json_object(self, name: str, limit: int = _MAX_JSON_BYTES) -> dict[str, Any]:
        """The object in a JSON file of at most `limit` bytes. Raises CheckpointError."""
        path = self.file(name)
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise CheckpointError(f"{name}: expected at most {limit} bytes, found {path.stat().st_size}")
        value = parse_json(raw, name)
        if not isinstance(value, dict):
            raise CheckpointError(f"{name}: expected an object, found {show(value)}")
        return value

    def single_shards(self) -> list[str]:
        """The shards of a folder without an index."""
        if self.has(SINGLE):
            return [SINGLE]
        names = sorted(path.name for path in self.path.glob("*.safetensors"))
        if not names:
            others = sorted(path.name for path in self.path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
            hint = f"{show(others[0])}, which is not read (see `mimo-ultraspeed convert`)" if others else "none"
            raise FileNotFoundError(f"{self.path}: expected *.safetensors files, found {hint}")
        return names


@dataclass(frozen=True)
class Index:
    """Which shard holds which tensor, as an index file says."""

    name: str
    weight_map: Mapping[str, str]
    shards: list[str]
    tp_size: int | None

    @classmethod
    def read(cls, folder: Folder, name: str = INDEX) -> Index:
        """Reads the index file of that name. Raises CheckpointError."""
        raw = folder.json_object(name, _MAX_INDEX_BYTES)
        weight_map = raw.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{name}: weight_map: expected an object of shard names, found {show(weight_map)}")
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or not shard.endswith(".safetensors"):
                raise CheckpointError(f"{name}: weight_map: {show(tensor)}: expected a *.safetensors file, found {show(shard)}")
        metadata = raw.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise CheckpointError(f"{name}: metadata: expected an object, found {show(metadata)}")
        return cls(name, weight_map, sorted(set(weight_map.values())), _tp_size(metadata or {}, name))


def _tp_size(metadata: Mapping[str, Any], source: str) -> int | None:
    value = metadata.get("tp_size")
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 1 <= value <= 65536:
        raise CheckpointError(f"{source}: metadata: tp_size: expected a positive integer, found {show(value)}")
    return value


def read_shards(folder: Folder, names: Sequence[str], index: Index | None) -> tuple[list[Tensor], dict[str, int], list[Path]]:
    """The text model's tensors in shards `names`, the number of skipped ones by group, and the files. Raises CheckpointError."""
    said_by = index.name if index is not None else ""
    owner: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    tensors: list[Tensor] = []
    paths = [folder.file(name, f"{said_by}: weight_map: " if index is not None else "") for name in names]
    if len(set(paths)) != len(paths):
        raise CheckpointError(f"{said_by}: weight_map: expected different files, found two names of one file")
    for number, (shard, path) in enumerate(zip(names, paths, strict=True)):
        for tensor in read_header(path, shard):
            if tensor.name in owner:
                raise CheckpointError(f"{shard}: {show(tensor.name)}: expected in one shard, found in {owner[tensor.name]} too")
            owner[tensor.name] = shard
            if index is not None and index.weight_map.get(tensor.name) != shard:
                said = index.weight_map.get(tensor.name)
                where = "does not list it" if said is None else f"says {show(said)}"
                raise CheckpointError(f"{shard}: {show(tensor.name)}: found in this shard, but {said_by} {where}")
            other = _SKIPPED.match(tensor.name)
            if other is not None and other.lastgroup is not None:
                skipped[other.lastgroup] += 1
            else:
                tensors.append(Tensor(tensor.name, tensor.dtype, tensor.shape, number, tensor.begin, tensor.end))
    if index is not None and len(owner) != len(index.weight_map):
        lost = next(name for name in index.weight_map if name not in owner)
        raise CheckpointError(f"{said_by}: weight_map: {show(lost)}: expected in {show(index.weight_map[lost])}, found in no shard")
    return tensors, dict(skipped), paths
