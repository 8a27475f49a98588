"""How much memory a model takes: what is refused before it is tried, and what caches may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

Arguments = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


def cache_bytes(memory: dict[str, int], positions: int) -> int:
    return memory["kv_fixed"] + -(-positions // 256) * 256 * memory["kv_per_position"]


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 512, count).tolist()


def drain(job: Any) -> list[int]:
    out: list[int] = []
    while (event := job.next()) is not None:
        out += event[0]
    return out


def limited(arguments: Arguments, positions: int, count: int = 1) -> Any:
    """An engine whose limit leaves room for `count` caches of `positions` positions."""
    memory = _probe.Engine(*arguments, threads=2).memory()
    limit = memory["total"] + count * cache_bytes(memory, positions)
    return _probe.Engine(*arguments, threads=2, memory_limit=limit)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(arguments: Arguments) -> None:
    memory = _probe.Engine(*arguments, threads=2).memory()
    least = memory["total"] + cache_bytes(memory, 1)
    engine = _probe.Engine(*arguments, threads=2, memory_limit=least - 1)
    before = _probe.alloc_stats()["calls"]
    with pytest.raises(MemoryError, match=r"(?s)does not fit.*packed weights.*workspace of 2 threads.*needed.*may be used"):
        engine.load()
    assert _probe.alloc_stats()["calls"] == before
    fits = _probe.Engine(*arguments, threads=2, memory_limit=least)
    fits.load()
    assert fits.memory()["limit"] == least
    assert len(drain(fits.submit([1, 2], max_new_tokens=8))) == 8


def test_loading_holds_no_second_copy(arguments: Arguments) -> None:
    threads = 3
    engine = _probe.Engine(*arguments, threads=threads)
    memory = engine.memory()
    before = _probe.alloc_stats()["live_bytes"]
    _probe.alloc_reset_peak()
    engine.load()
    peak = _probe.alloc_stats()["peak_bytes"] - before
    assert peak <= memory["weights"] + memory["embedding"] + threads * 1.25 * 2**20 + 2**16


def test_a_job_that_can_never_fit_is_refused_at_once(arguments: Arguments) -> None:
    engine = limited(arguments, 512)
    engine.load()
    with pytest.raises(MemoryError, match=r"the KV cache of 513 positions needs .* MB, and .* MB are left beside the weights"):
        engine.submit(tokens(13), max_new_tokens=500)
    with pytest.raises(MemoryError, match="the KV cache of 513 positions"):
        engine.logits(tokens(513))
    with pytest.raises(MemoryError, match="the KV cache of 513 positions"):
        engine.step_times([1, 13], context=500)
    assert engine.step_times([12], context=500, repeats=1).shape == (1, 1)
    assert len(drain(engine.submit(tokens(12), max_new_tokens=500))) == 500


def test_a_call_to_the_drafter_counts_its_cache_too(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path / "model", draft=True, progress=False))
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    config, weights, files = checkpoint.core_arguments()
    call = (config, weights, [*files, *map(str, drafter.files)])
    memory = _probe.Engine(*call, draft=drafter.to_core(), threads=2).memory()
    engine = _probe.Engine(*call, draft=drafter.to_core(), threads=2, memory_limit=memory["total"] + cache_bytes(memory, 256))
    engine.load()
    with pytest.raises(MemoryError, match="the KV cache of 257 positions"):
        engine.draft_logits(tokens(257), [256])
    assert engine.draft_logits(tokens(256), [255]).shape == (7, 512)


def test_jobs_wait_until_their_caches_fit(arguments: Arguments) -> None:
    free = _probe.Engine(*arguments, threads=2)
    free.load()
    engine = limited(arguments, 256, count=2)
    engine.load()
    prompts = [tokens(10 + i, seed=i) for i in range(7)]
    want = [drain(free.submit(prompt, max_new_tokens=30)) for prompt in prompts]
    jobs = [engine.submit(prompt, max_new_tokens=30) for prompt in prompts]
    assert [drain(job) for job in jobs] == want
    # Two that nobody reads hold all room: a third waits, a call is refused, and both go on once there is room.
    unread = [engine.submit(prompt, max_new_tokens=200, queue_bytes=0) for prompt in prompts[:2]]
    assert all(job.next() is not None for job in unread)
    third = engine.submit(prompts[2], max_new_tokens=30)
    assert third.next(timeout=0.05) is None and not third.done
    with pytest.raises(MemoryError, match="does not fit beside those of the running answers"):
        engine.logits([1, 2, 3])
    unread[0].cancel()
    assert drain(third) == want[2]
    assert engine.logits([1, 2, 3]).shape == (3, 512)
    left_over = engine.submit(prompts[3], max_new_tokens=30)
    left_over.cancel()
    drain(left_over)
    assert left_over.finish_reason == "cancelled"


def test_idle_caches_are_small_beside_the_weights(arguments: Arguments) -> None:
    engine = _probe.Engine(*arguments, threads=2)
    engine.load()
    memory = engine.memory()
    before = _probe.alloc_stats()["live_bytes"]
    most = (memory["weights"] + memory["embedding"]) // 8
    for i in range(6):
        answer = drain(engine.submit(tokens(20, seed=i), max_new_tokens=3000 if i % 2 else 10))
        held = _probe.alloc_stats()["live_bytes"] - before
        latest = cache_bytes(memory, 3020 if i % 2 else 30)
        assert held <= max(most, latest) + 4 * 2**16, i
    again = engine.submit(tokens(20, seed=5) + answer + [1], max_new_tokens=1)
    drain(again)
    assert again.stats()["cached_tokens"] == 3019


def test_a_cache_takes_memory_for_what_is_in_it(tmp_path: Path) -> None:
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.is_file():
        pytest.skip("not run: the system does not tell a process's largest resident size")

    def resident(name: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(f"{name}:"))

    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "hybrid_layer_pattern": [0] * 4}
    folder = make(tmp_path / "model", overrides=heads, progress=False)
    engine = _probe.Engine(*Checkpoint.open(folder).core_arguments(), threads=2)
    engine.load()
    drain(engine.submit(tokens(60, seed=1), max_new_tokens=4))
    reset.write_text("5")  # the largest so far is forgotten
    before, common = resident("VmRSS"), tokens(60)
    jobs = [engine.submit([*common, i], max_new_tokens=4) for i in range(16)]
    assert all(len(drain(job)) == 4 for job in jobs)
    assert sum(job.stats()["cached_tokens"] == 60 for job in jobs) == 15  # copied from the first
    chunks = 16 * cache_bytes(engine.memory(), 65)
    assert chunks > 64 * 2**20
    assert resident("VmHWM") - before < 0.6 * chunks


def test_what_the_machine_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimo_ultraspeed.hardware import available_memory, memory_limit

    assert available_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/user/one\n")
    group = tmp_path / "sys/fs/cgroup/user/one"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000000\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (group.parent / "memory.max").write_text("5000000\n")
    (group.parent / "memory.current").write_text("3000000\n")
    (group.parent / "memory.stat").write_text("anon 7\nactive_file 300\ninactive_file 500\n")
    assert available_memory(tmp_path) == 2000800

    assert (available_memory() or 1) > 0
    for told, want in {"none": 0, "2G": 2 << 30, "1.5M": 3 << 19, "800MiB": 800 << 20, "12345": 12345}.items():
        monkeypatch.setenv("MIMO_MEMORY", told)
        assert memory_limit() == want
    for told in ("0", "some", "-1G", "G"):
        monkeypatch.setenv("MIMO_MEMORY", told)
        with pytest.raises(ValueError, match=r"MIMO_MEMORY: expected 'none' or a size"):
            memory_limit()
