"""Prints what ptxas said of every kernel, what the functions of the roles of one take, and the shared memory that CTAs are launched
with: kernels.py BUILD_TEMP/cuda

Fails on spills, on more registers than a kernel, or a role of it, may have, and on more shared memory than a CTA has (sm_90; sm_100
has as much). The installed package says how a launch shares it out (csrc/cuda/launch.h), for models of every shape.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cubin import functions

MOST_REGISTERS = {"sm_90a": 168, "sm_100a": 184}  # with 256 threads a CTA; a multiprocessor has 65,536
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


# Of the resident kernel: what setmaxnreg (csrc/cuda/sm90/resident.cu) gives each role, and the function that it runs in, which may
# be the kernel's own.
RESIDENT = "mimo_resident"
ROLES = {"load": (40, "mimo_resident_load"), "compute": (232, RESIDENT)}


def plain(name: str) -> str:
    """A function's name without what C++ adds to it: its length before it, its parameters behind."""
    added = re.match(r"_Z(\d+)", name)
    return name[added.end() :][: int(added[1])] if added else name


def roles(image: bytes) -> list[tuple[str, str, str, int, int]]:
    """(architecture, role, function, registers, most) of the resident kernel in an image; [] if it is not there. LookupError for a
    role that was inlined, and so has no registers of its own. A function of no role by name was left apart by the compiler: the
    compute role's, the only one that has such."""
    apart = [
        (arch, plain(name), registers)
        for arch, kernel, name, registers in functions(image)
        if kernel == RESIDENT and (name == RESIDENT or name.startswith("_Z"))
    ]
    there = {(arch, name) for arch, name, _ in apart}
    for arch in {arch for arch, _ in there}:
        for _, wanted in ROLES.values():
            if (arch, wanted) not in there:
                raise LookupError(f"{RESIDENT}, {arch}: no function {wanted} of its own")
    role_of = {name: role for role, (_, name) in ROLES.items()}
    owned = [(arch, role_of.get(name, "compute"), name, registers) for arch, name, registers in apart]
    return [(arch, role, name, registers, ROLES[role][0]) for arch, role, name, registers in owned]


# Models whose launches are looked at, with few experts, which need no shared memory: (shape, ranks that share it).
SHARED_OF = (("tiny", 1), ("nano", 1), ("medium", 1), ("flash", 1), ("v2.5", 1), ("pro", 1), ("pro", 8))
EXPERTS = {"n_routed_experts": 8}


def launched(folder: Path, shape: str, world: int, limit: int, **overrides: Any) -> list[tuple[str, str, str, int]]:
    """(kernel, role, what, bytes) of the shared memory of a CTA that may have `limit`, for one of `world` ranks of a model with a
    drafter. NotImplementedError if it does not fit. Writes headers of the model to the folder."""
    from mimo_ultraspeed import _probe
    from mimo_ultraspeed.checkpoint import Checkpoint
    from mimo_ultraspeed.drafter import open_drafter
    from mimo_ultraspeed.make import make

    path = make(folder, shape=shape, weights="mxfp4", draft=True, headers_only=True, progress=False, overrides=EXPERTS | overrides)
    checkpoint = Checkpoint.open(path)
    config, tensors, files = checkpoint.core_arguments()
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    files += [str(file) for file in drafter.files]
    engine = _probe.Engine(config, tensors, files, threads=1, draft=drafter.to_core())
    used: list[tuple[str, str, str, int]] = _probe.shared_use(_probe.lower(engine, 1, limit, 0, world, False))
    engine.close()
    return used


def limits() -> dict[str, int]:
    """kernel -> bytes of shared memory that a CTA of it may have, static ones included."""
    from mimo_ultraspeed import _probe

    return dict(_probe.shared_limits())


def shared_rows(static: Mapping[str, int], most: Mapping[str, int]) -> Iterator[tuple[str, str, str, int, int, bool]]:
    """(kernel, model, what its roles have, bytes, most, wrong) of each kernel for all of SHARED_OF. static: bytes by kernel, of the
    plain path's the most of any. A launch of the resident kernel asks for all that a CTA may have: it must have none."""
    with tempfile.TemporaryDirectory() as folder:
        for shape, world in SHARED_OF:
            model = shape if world == 1 else f"{shape}, 1 of {world}"
            try:
                parts = launched(Path(folder) / f"{shape}-{world}", shape, world, most["mimo_resident"])
            except NotImplementedError as error:
                yield "mimo_resident", model, str(error), 0, most["mimo_resident"], True
                continue
            for kernel in static:
                own = [(f"{role}: {what} {size}", size) for name, role, what, size in parts if name == kernel]
                total = static[kernel] + sum(size for _, size in own)
                wrong = total > most[kernel] or (kernel == "mimo_resident" and static[kernel] > 0)
                yield kernel, model, ", ".join(text for text, _ in own), total, most[kernel], wrong


def main(folder: Path) -> int:
    bad = 0
    static: dict[str, int] = {}
    kernels = 0
    print(f"{'kernel':<32}{'arch':>8}{'registers':>11}{'shared':>8}{'stack':>7}{'spilt':>7}")
    for log in sorted(folder.glob("*.ptxas")):
        for found in ENTRY.finditer(log.read_text()):
            shared = re.search(r"(\d+) bytes smem", found["rest"])
            spilt = int(found["stores"]) + int(found["loads"])
            wrong = spilt > 0 or int(found["registers"]) > MOST_REGISTERS[found["arch"]]
            bad += wrong
            kernels += 1
            family = RESIDENT if found["name"] == RESIDENT else "mimo_plain"
            static[family] = max(static.get(family, 0), int(shared[1]) if shared else 0)
            print(
                f"{found['name']:<32}{found['arch']:>8}{found['registers']:>11}{shared[1] if shared else '0':>8}"
                f"{found['stack']:>7}{spilt:>7}{'  <-' if wrong else ''}"
            )
    for path in sorted(folder.glob("*.fatbin")):
        for arch, role, name, registers, most in roles(path.read_bytes()):
            wrong = registers > most
            bad += wrong
            print(f"{RESIDENT}, {arch}, {role}: {name} takes {registers} registers of {most}{'  <-' if wrong else ''}")
    if kernels == 0:
        print(f"no kernels in {folder}")
        return 1
    print(f"{'shared memory of a CTA':<24}{'model':<16}{'bytes':>8}{'most':>8}")
    for kernel, model, what, total, limit, wrong in shared_rows(static, limits()):
        bad += wrong
        print(f"{kernel:<24}{model:<16}{total:>8}{limit:>8}  {what}{'  <-' if wrong else ''}")
    limits_of = ", ".join(f"{most} on {arch}" for arch, most in MOST_REGISTERS.items())
    print(f"{kernels} kernels, {bad} faults: spills, too many registers ({limits_of}) or too much shared memory")
    return 0 if bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
