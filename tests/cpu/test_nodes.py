"""Memory nodes: which worker has which octets, and that no result depends on it. The nodes are made up: any machine will do."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.hardware import memory_nodes
from mimo_ultraspeed.make import make

Nodes = list[list[int]]
Claims = tuple[list[int], list[list[tuple[int, int, int]]]]

NODES: list[Nodes] = [[[0], [1]], [[0, 1], [2, 3]], [[0, 1, 2], [3]], [[0], [1, 2], [3, 4, 5]], [[], [0, 1]], [[0], [], [1]]]


def claims(nodes: Nodes, threads: int, octets: int, size: int, matrices: int = 1) -> Claims:
    """In a thread of its own, which the pool moves to the first worker's node."""
    found: list[Claims] = []
    thread = threading.Thread(target=lambda: found.append(_probe.claims(nodes, threads, octets, size, matrices)))
    thread.start()
    thread.join()
    return found[0]


def node_of(octet: int, homes: list[int]) -> int:
    return max(n for n in range(len(homes) - 1) if homes[n] <= octet and homes[n] < homes[n + 1])


@pytest.mark.parametrize("nodes", [[], [[0, 1]], *NODES])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("octets", "size", "matrices"), [(72, 6, 1), (24, 4, 8), (7, 2, 1), (1, 1, 3), (255, 16, 2)])
def test_every_octet_is_taken_once(nodes: Nodes, threads: int, octets: int, size: int, matrices: int) -> None:
    homes, workers = claims(nodes, threads, octets, size, matrices)
    assert homes[0] == 0 and homes[-1] == octets and homes == sorted(homes)
    taken = sorted(piece for worker in workers for piece in worker)
    covered = [(matrix, octet + i) for matrix, octet, count in taken for i in range(count)]
    assert covered == [(matrix, octet) for matrix in range(matrices) for octet in range(octets)]
    for _, octet, count in taken:
        assert 1 <= count <= size and node_of(octet, homes) == node_of(octet + count - 1, homes)


@pytest.mark.parametrize("nodes", NODES[:4])
def test_workers_begin_with_their_own_node(nodes: Nodes) -> None:
    threads = sum(map(len, nodes))
    homes, workers = claims(nodes, threads, 4096, 4, 3)
    assert np.diff(homes).tolist() == pytest.approx([4096 * len(node) / threads for node in nodes], abs=4)
    own = [n for n, node in enumerate(nodes) for _ in node]  # of each worker
    for worker, pieces in enumerate(workers):
        visited = [node_of(octet, homes) for _, octet, _ in pieces]
        assert visited[0] == own[worker]
        assert visited == sorted(visited, key=lambda n: (n - own[worker]) % len(nodes))  # then the others', and never back


def test_one_node_is_as_none() -> None:
    assert claims([], 3, 100, 6)[0] == claims([[0, 1]], 3, 100, 6)[0] == [0, 100]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_nodes_change_no_result(arguments: tuple[Any, Any, Any], precision: str) -> None:
    ids = np.random.default_rng(0).integers(0, 512, 150).tolist()
    plain = _probe.Engine(*arguments, precision=precision, threads=2)
    plain.load()
    want = plain.logits(ids)
    for nodes in NODES:
        for threads in (1, 3, 4):
            engine = _probe.Engine(*arguments, precision=precision, threads=threads, nodes=nodes)
            engine.load()
            for step in (1, 7, 128):
                assert np.array_equal(engine.logits(ids, step=step), want), (nodes, threads, step)
            engine.close()


def first_touches() -> dict[int, int]:
    """Pages that each thread of this process was the first to touch."""
    lines = {int(path.name): (path / "stat").read_text() for path in Path("/proc/self/task").iterdir()}
    return {task: int(line.rpartition(")")[2].split()[7]) for task, line in lines.items()}


def test_weights_are_first_written_on_the_node_that_reads_them(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2 or not Path("/proc/self/task").is_dir():
        pytest.skip("not run: needs two cores, and a system that tells of page faults by thread")
    # A third of matrices of 8 octets is less than a block: all of them belong to the second node, which has two of the workers.
    shape = {"hidden_size": 64, "moe_intermediate_size": 64, "n_routed_experts": 512}
    call = Checkpoint.open(make(tmp_path / "model", overrides=shape, progress=False)).core_arguments()
    engine = _probe.Engine(*call, threads=3, nodes=[cores[:1], cores[1:2]])
    before = first_touches()
    engine.load()
    after = first_touches()
    places = {task: os.sched_getaffinity(task) for task in after}
    by_node = [sum(after[task] - before.get(task, 0) for task in after if places[task] == {core}) for core in cores[:2]]
    pages = engine.memory()["weights"] / os.sysconf("SC_PAGE_SIZE")
    assert by_node[1] > 0.8 * pages and by_node[0] < 0.2 * pages, (by_node, pages)


def test_nodes_are_checked(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="nodes: expected cores from 0 to 1023, found 1024"):
        _probe.Engine(*arguments, nodes=[[0], [1024]])
    with pytest.raises(ValueError, match="nodes: expected at most 16, found 17"):
        _probe.Engine(*arguments, nodes=[[0]] * 17)
    with pytest.raises(TypeError):
        _probe.Engine(*arguments, nodes=[["0"]])


def test_nodes_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 9, 10, 11}, raising=False)
    assert memory_nodes(tmp_path) == [[0, 1, 2, 9, 10, 11]]
    for node, listed in {"node10": "11", "node2": "2-9", "node0": "0-1,10,40-47\n", "node3": "", "node4": "100-103"}.items():
        (tmp_path / "sys/devices/system/node" / node).mkdir(parents=True)
        (tmp_path / "sys/devices/system/node" / node / "cpulist").write_text(listed)
    assert memory_nodes(tmp_path) == [[0, 1, 10], [2, 9], [11]]
