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


# Of the resident kernel: what setmaxnreg (csrc/cuda/sm90/resident.cu) gives each role, and the functions that it runs in.
ROLES = {"load": (40, ["mimo_resident_load"]), "compute": (232, ["mimo_resident_compute", "mimo_engine_run"])}
RESIDENT = "mimo_resident"


def roles(image: bytes) -> list[tuple[str, str, int, int]]:
    """(role, function, registers, most) of the resident kernel in an image; [] if it is not there. LookupError for a role that has
    been inlined, and so has no registers of its own."""
    found = [(name, registers) for kernel, name, registers in functions(image) if kernel == RESIDENT]
    out = []
    for role, (most, names) in ROLES.items() if found else ():
        for wanted in names:
            mine = [registers for name, registers in found if re.match(rf"_Z\d+{wanted}(?![a-z_])", name)]
            if not mine:
                raise LookupError(f"{RESIDENT}: no function {wanted} of its own")
            out.append((role, wanted, max(mine), most))
    return out


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
