"""Prints what ptxas said of every kernel, and what the functions of the roles of one take: kernels.py BUILD_TEMP/cuda

Fails on spills, and on more registers than a kernel, or a role of it, may have.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cubin import functions

MOST_REGISTERS = 168  # with 256 threads a CTA; a multiprocessor has 65,536
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


# Of the resident kernel: what setmaxnreg (csrc/cuda/sm90/resident.cu) gives each role, and the function that it runs in.
ROLES = {"load": (40, "mimo_resident_load"), "compute": (232, "mimo_resident_compute")}
RESIDENT = "mimo_resident"


def roles(image: bytes) -> list[tuple[str, str, int, int]]:
    """(role, function, registers, most) of the resident kernel in an image; [] if it is not there. LookupError for a role that was
    inlined, and so has no registers of its own. A function of no role by name was left apart by the compiler: the compute role's,
    the only one that has such."""
    apart = {name: registers for kernel, name, registers in functions(image) if kernel == RESIDENT and name.startswith("_Z")}
    if not apart:
        return []
    called = {name: re.sub(r"_Z\d+([a-z_]+).*", r"\1", name) for name in apart}
    for _, wanted in ROLES.values():
        if wanted not in called.values():
            raise LookupError(f"{RESIDENT}: no function {wanted} of its own")
    role_of = {name: role for role, (_, name) in ROLES.items()}
    owners = [(role_of.get(called[name], "compute"), name) for name in apart]
    return [(role, called[name], apart[name], ROLES[role][0]) for role, name in owners]


def main(folder: Path) -> int:
    bad = 0
    kernels = 0
    print(f"{'kernel':<32}{'arch':>8}{'registers':>11}{'shared':>8}{'stack':>7}{'spilt':>7}")
    for log in sorted(folder.glob("*.ptxas")):
        for found in ENTRY.finditer(log.read_text()):
            shared = re.search(r"(\d+) bytes smem", found["rest"])
            spilt = int(found["stores"]) + int(found["loads"])
            wrong = spilt > 0 or int(found["registers"]) > MOST_REGISTERS
            bad += wrong
            kernels += 1
            print(
                f"{found['name']:<32}{found['arch']:>8}{found['registers']:>11}{shared[1] if shared else '0':>8}"
                f"{found['stack']:>7}{spilt:>7}{'  <-' if wrong else ''}"
            )
    for path in sorted(folder.glob("*.fatbin")):
        for role, name, registers, most in roles(path.read_bytes()):
            wrong = registers > most
            bad += wrong
            print(f"{RESIDENT}, {role}: {name} takes {registers} registers of {most}{'  <-' if wrong else ''}")
    if kernels == 0:
        print(f"no kernels in {folder}")
    print(f"{kernels} kernels, {bad} with spills or too many registers ({MOST_REGISTERS}; shared: static, more comes at launch)")
    return 0 if kernels > 0 and bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
