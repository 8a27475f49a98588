"""base/file: exact reads, and one clear error for everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import CheckpointError


def test_reads_exact_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)))
    assert _probe.file_read(str(path), 10, 5) == bytes(range(10, 15))
    assert _probe.file_read(str(path), 256, 0) == b""


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=r"data: truncated: expected 2 more bytes at byte 3"):
        _probe.file_read(str(path), 0, 5)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        _probe.file_read(str(tmp_path / "none"), 0, 1)


def test_folder_and_fifo_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(CheckpointError, match="expected a regular file"):
            _probe.file_read(str(path), 0, 1)
